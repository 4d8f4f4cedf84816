"""The secure sum is the plain sum, bit for bit, whoever vanishes, repeats, reorders or dies."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplat.secagg.thresholds import dropouts_tolerated
from tests.unit.secagg.world import Crash, Drops, World, build, most_drops, plain_sum, run_step

PHASES = ["train", "agree", "unmask"]


def check(world: World, step: int, drops: Drops, shuffle: random.Random | None = None) -> None:
    terms = world.terms(step, weights=f"{step:064x}")
    total = run_step(world, terms, drops, step, shuffle)
    assert (total == plain_sum((n for n in terms.silos if n not in drops.train), step)).all()


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("num_silos", [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 23])
def test_any_silos_vanish_down_to_the_threshold_at_any_phase(num_silos: int, strong: bool) -> None:
    world = build(num_silos, strong=strong)
    check(world, 1, Drops())
    for step, phase in enumerate(PHASES, start=2):
        check(world, step, most_drops(world, world.terms(step), phase))


def test_sixty_four_silos() -> None:
    world = build(64)
    check(world, 1, most_drops(world, world.terms(1), "train"))


@pytest.mark.slow
@pytest.mark.parametrize("num_silos", range(2, 65))
def test_every_number_of_silos(num_silos: int) -> None:
    world = build(num_silos)
    for step, phase in enumerate(PHASES, start=1):
        check(world, step, most_drops(world, world.terms(step), phase))


@settings(max_examples=25)
@given(st.integers(2, 9), st.booleans(), st.randoms(use_true_random=False))
def test_random_schedules(num_silos: int, strong: bool, chance: random.Random) -> None:
    """Three rounds of drops at every phase, repeats, other orders, and deaths before and after writes."""
    world = build(num_silos, strong=strong)
    step = 0
    for _ in range(3):
        step += chance.randint(1, 5)
        spare = dropouts_tolerated(num_silos, strong, world.silos[0].rules.min_cohort)
        gone = chance.sample(world.names, chance.randint(0, spare))
        inside = [name for name in world.names if name not in gone]
        num_silent = len(inside) - world.terms().threshold
        silent = [frozenset(chance.sample(inside, chance.randint(0, num_silent))) for _ in range(2)]
        # Who answers the last question has agreed before: the silent of both phases together must leave the threshold.
        unmask = silent[1] if len(silent[0] | silent[1]) <= num_silent else frozenset()
        for silo in world.silos:
            silo.crash_at = chance.choices(["", "before", "after"], k=chance.randint(0, 3))
        check(world, step, Drops(frozenset(gone), silent[0], unmask), chance)


@pytest.mark.parametrize("crash", ["before", "after"])
@pytest.mark.parametrize("write", range(4))
def test_a_silo_dies_at_every_write_of_an_epoch(write: int, crash: str) -> None:
    """Writes: the key, the roster, the step, the signature."""
    world = build(3)
    victim = world.silos[1]
    schedule = ["", "", "", ""]
    schedule[write] = crash
    victim.crash_at = schedule[::-1]
    with suppress(Crash):
        world.new_epoch(2, 10)
    with suppress(Crash):
        world.new_epoch(2, 10)
    world.new_epoch(2, 10)
    check(world, 10, Drops())


def test_steps_may_be_skipped_and_silos_invited_anew() -> None:
    world = build(5)
    everybody = world.names
    for step, invited in [(1, everybody), (7, everybody[:4]), (900, everybody[1:]), (901, everybody)]:
        terms = world.terms(step, invited, weights=f"{step:064x}")
        assert (run_step(world, terms, round_number=step) == plain_sum(invited, step)).all()


def test_a_silo_with_a_lost_disk_takes_part_in_the_next_epoch() -> None:
    """Also when the run is further on than a silo may jump: the chain keys of an epoch begin at its first step."""
    world = build(4)
    for step in (1000, 2000):
        check(world, step, Drops())
    world.silos[2].disk = None
    world.new_epoch(2, 2001)
    check(world, 2001, Drops())
