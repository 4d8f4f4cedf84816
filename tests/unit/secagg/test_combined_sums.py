"""However a server chooses silos, cohorts and epochs for the same weights, no combination of the sums that it opens is
one honest silo's update."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest

from fedplat.secagg.cohort import sign_cohort
from fedplat.secagg.errors import RefusedError
from fedplat.secagg.messages import AgreeAnswer, TrainPart
from fedplat.secagg.server import ServerStep
from fedplat.secagg.thresholds import colluders_withstood, smallest_cohort
from tests.unit.secagg.world import World, build, identity, members


def cohorts_opened(world: World, colluders: frozenset[str], num_steps: int, chance: random.Random) -> list[set[str]]:
    """The cohorts for which a server gathers enough signatures, with colluders who sign everything."""
    found: list[set[str]] = []
    epoch, lowest = 1, 1
    for _ in range(num_steps):
        if chance.random() < 0.3:
            epoch, lowest = epoch + 1, lowest + 1
            world.new_epoch(epoch, lowest)
        size = chance.randint(3, len(world.names))
        terms = world.terms(lowest, sorted(chance.sample(world.names, size)))
        lowest += 1
        parts: dict[str, TrainPart] = {}
        for name in terms.silos:
            with suppress(RefusedError):
                parts[name] = world[name].train(terms)[1]
        server = world.server(terms)
        smallest = smallest_cohort(size, world.strong, 3)
        for _ in range(3):
            if len(parts) >= smallest:
                chosen = sorted(chance.sample(sorted(parts), chance.randint(smallest, len(parts))))
                if is_opened(world, server, parts, chosen, colluders, chance):
                    found.append(set(chosen))
    return found


def is_opened(
    world: World,
    server: ServerStep,
    parts: dict[str, TrainPart],
    chosen: Sequence[str],
    colluders: frozenset[str],
    chance: random.Random,
) -> bool:
    cohort = members(parts, chosen)
    honest = [name for name in chosen if name not in colluders]
    num_asked = max(0, server.terms.threshold - len(colluders & set(chosen)))
    agreed = {
        name: AgreeAnswer(
            step=server.terms.step, signature=sign_cohort(identity(int(name[-2:])), server.context, cohort)
        )
        for name in colluders & set(chosen)
    }
    for name in chance.sample(honest, min(len(honest), num_asked + chance.randint(0, 1))):
        with suppress(RefusedError):
            agreed[name] = world[name].agree(server.agree_question(name, cohort, parts))
    try:
        question = server.unmask_question(cohort, agreed)
    except RefusedError:
        return False
    helpers = [name for name in agreed if name not in colluders]
    assert all(world[name].unmask(question) for name in helpers)
    return True


def isolated(cohorts: Sequence[set[str]], honest: Sequence[str]) -> list[str]:
    """The silos whose update is a combination of the sums; the colluders' own updates are known."""
    sums = np.array([[name in cohort for name in honest] for cohort in cohorts], float).reshape(-1, len(honest))
    rank = np.linalg.matrix_rank(sums) if len(sums) else 0
    singles = np.eye(len(honest))
    return [name for name, one in zip(honest, singles, strict=True) if np.linalg.matrix_rank([*sums, one]) == rank]


def attack(num_silos: int, strong: bool, num_steps: int, chance: random.Random, **rules: int) -> list[str]:
    world = build(num_silos, strong=strong)
    colluders = frozenset(world.names[num_silos - colluders_withstood(num_silos, strong, 3) :])
    for s in world.silos:
        s.insists(**(rules | ({"max_releases_per_model": 99} if s.name in colluders else {})))
    cohorts = cohorts_opened(world, colluders, num_steps, chance)
    return isolated(cohorts, [name for name in world.names if name not in colluders])


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("num_silos", [4, 5, 6, 7])
def test_no_combination_is_one_update(num_silos: int, strong: bool) -> None:
    chance = random.Random(num_silos)
    assert not any(attack(num_silos, strong, 6, chance) for _ in range(15))


@pytest.mark.parametrize("num_silos", [4, 5])
def test_with_more_releases_one_is_found(num_silos: int) -> None:
    """The search can find it: two cohorts for the same weights are enough."""
    chance = random.Random(1)
    assert any(attack(num_silos, False, 6, chance, max_releases_per_model=2) for _ in range(30))
