"""The server dies before each of its file writes and each of its transactions of a run with secure aggregation, and
goes on from what is left: the same weights, the same cohorts, no step used twice, no file that no row owns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.deaths import at_every_transaction, at_every_write
from tests.support.maskedworld import MaskedWorld

WEIGHTS = {"silo-a": 3, "silo-b": 1, "silo-c": 2}


@pytest.fixture
def world(tmp_path: Path) -> MaskedWorld:
    """Before the first process."""
    return MaskedWorld(tmp_path / "new", WEIGHTS, strategy="fedadam", timeout_s=30)


@pytest.fixture
def expected(world: MaskedWorld) -> tuple[str, set[str]]:
    """What an undisturbed life leaves."""
    reference = world.copy("reference")
    return reference.live(), reference.files()


def check(world: MaskedWorld, expected: tuple[str, set[str]], where: str) -> None:
    assert (world.live(), world.files()) == expected, where
    store = world.open()
    try:
        steps = store.secure.steps("r-1")
        committed = {row.number: row for row in store.rounds.list("r-1")}
        assert all(len(step.cohort or ()) == len(WEIGHTS) for step in steps if step.cohort is not None), where
        assert {step.round_number for step in steps if step.closing} == {world.rounds}, where
        for number, row in committed.items():
            [cohort] = [s.cohort for s in steps if s.step == row.step and not s.closing]
            assert cohort is not None, where
            assert [name for name, _ in cohort] == row.cohort, (where, number)
        measured = {e.round_number: e.num_examples for e in store.rounds.evaluations("r-1") if e.split == "test"}
        assert measured == dict.fromkeys(range(world.rounds + 1), 6), where
    finally:
        store.close()


@pytest.mark.parametrize("power_loss", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_file_write_of_a_run(
    world: MaskedWorld, expected: tuple[str, set[str]], monkeypatch: pytest.MonkeyPatch, power_loss: bool
) -> None:
    steps = []
    for tried, step in at_every_write(world, monkeypatch, power_loss=power_loss):
        check(tried, expected, f"after a crash before step {step} ({len(steps)})")
        steps.append(step)
    assert len(steps) > 60, "the points are enumerated, not guessed"


def test_every_transaction_of_a_run(
    world: MaskedWorld, expected: tuple[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_points = 0
    for tried in at_every_transaction(world, monkeypatch):
        check(tried, expected, f"after a crash in transaction {num_points}")
        num_points += 1
    assert num_points > 25
