"""reserve -> spend -> close: what it counts, and what it refuses."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedplat.errors import ConflictError, NotFoundError
from fedplat.privacy import SampledGaussian, calibrate, epsilon
from fedplat_silo.ledger import BudgetExceeded, LedgerError, RunUnprotected
from fedplat_silo.ledger.entries import Closed
from tests.unit.ledger.scene import Scene, steps


def spent(scene: Scene) -> int:
    """Steps that the population was charged."""
    state = scene.book.look()
    population = state.population("heart")
    assert population is not None
    return state.spent(population).total()


def test_a_plan_that_fits_is_spent_round_by_round(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    receipt = scene.reserve("r-1", steps(10))
    assert (receipt.spent, receipt.reserved) == ((), (steps(10),))
    for number in range(1, 6):
        receipt = scene.book.spend("r-1", number, "a", [steps(2)])
    assert (receipt.spent, receipt.reserved) == ((steps(10),), ())
    with pytest.raises(BudgetExceeded):
        scene.book.spend("r-1", 6, "a", [steps(2)])
    assert spent(scene) == 10


def test_a_plan_that_does_not_fit_is_refused_with_the_figures(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    scene.reserve("r-1", steps(6))
    scene.book.spend("r-1", 1, "a", [steps(1)])
    head = scene.book.head()
    with pytest.raises(BudgetExceeded) as caught:
        scene.reserve("r-2", steps(5))
    found = caught.value.figures
    assert (found.budget, found.delta) == (10, 1e-5)
    assert (found.spent, found.committed, found.asked, found.total) == (1, 6, 5, 11)
    assert "11.000 of 10" in caught.value.message
    assert caught.value.words["dataset"] == "heart"
    assert scene.book.head() == head, "a refusal leaves nothing"
    scene.reserve("r-2", steps(4))


def test_what_was_reserved_and_not_spent_is_free_after_close(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    scene.reserve("r-1", steps(10))
    scene.book.spend("r-1", 1, "a", [steps(3)])
    with pytest.raises(BudgetExceeded):
        scene.reserve("r-2", steps(1))
    scene.book.close("r-1")
    scene.book.close("r-1")
    scene.reserve("r-2", steps(7))
    assert scene.book.close("unknown") is None


def test_the_same_release_is_charged_once_and_another_one_anew(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    scene.reserve("r-1", steps(4))
    first = scene.book.spend("r-1", 1, "a", [steps(2)])
    assert scene.book.spend("r-1", 1, "a", [steps(2)]).entry == first.entry
    assert scene.reopen().spend("r-1", 1, "a", [steps(2)]).entry == first.entry
    assert spent(scene) == 2
    scene.book.spend("r-1", 1, "b", [steps(2)])
    assert spent(scene) == 4
    with pytest.raises(ConflictError):
        scene.book.spend("r-1", 1, "a", [steps(3)])


def test_repeats_beyond_the_reservation_take_what_nobody_else_has_reserved(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    scene.reserve("r-1", steps(4))
    scene.reserve("r-2", steps(4))
    for attempt in "abc":
        scene.book.spend("r-1", 1, attempt, [steps(2)])
    assert spent(scene) == 6
    with pytest.raises(BudgetExceeded):
        scene.book.spend("r-1", 1, "d", [steps(2)])
    for number in (1, 2):
        scene.book.spend("r-2", number, "a", [steps(2)])
    assert spent(scene) == 10


def test_other_noise_than_planned_is_not_what_was_reserved(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    scene.reserve("r-1", steps(9))
    with pytest.raises(BudgetExceeded):
        scene.book.spend("r-1", 1, "a", [steps(1, noise=0.5)])


def test_a_budget_below_what_is_spent_stops_everything(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    scene.reserve("r-1", steps(10))
    scene.book.spend("r-1", 1, "a", [steps(5)])
    scene.budget(3)
    with pytest.raises(BudgetExceeded):
        scene.book.spend("r-1", 2, "a", [steps(1)])
    with pytest.raises(BudgetExceeded):
        scene.reserve("r-2", steps(1))
    scene.book.spend("r-1", 1, "a", [steps(5)])  # what was charged may be sent again
    scene.budget(6)
    scene.book.spend("r-1", 2, "a", [steps(1)])


def test_a_run_reserves_again_when_its_plan_changes(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    first = scene.reserve("r-1", steps(6))
    again = scene.reserve("r-1", steps(6))
    assert (again.spent, again.reserved) == (first.spent, first.reserved)
    scene.book.spend("r-1", 1, "a", [steps(4)])
    scene.reserve("r-1", steps(10))
    with pytest.raises(BudgetExceeded):
        scene.reserve("r-1", steps(11))
    scene.book.close("r-1")
    with pytest.raises(LedgerError, match="nothing reserved"):
        scene.book.spend("r-1", 2, "a", [steps(1)])
    scene.reserve("r-1", steps(10))
    scene.book.spend("r-1", 2, "a", [steps(1)])
    with pytest.raises(ConflictError):
        scene.book.reserve(
            "r-1", spec_hash="f" * 64, dataset="heart", mode="record", unit="patient", delta=1e-5, events=[]
        )


def test_a_budget_refuses_what_it_does_not_count(scene: Scene) -> None:
    scene.register()
    scene.reserve("plain", mode="none")
    scene.book.spend("plain", 1, "a")
    scene.budget(10)
    with pytest.raises(RunUnprotected, match="no differential privacy"):
        scene.book.spend("plain", 2, "a")
    with pytest.raises(RunUnprotected):
        scene.reserve("plain-2", mode="none")
    with pytest.raises(RunUnprotected, match="for patients"):
        scene.book.reserve(
            "r-2", spec_hash="f" * 64, dataset="heart", mode="record", unit="record", delta=1e-5, events=[steps(1)]
        )
    scene.reserve("r-1", steps(1))
    with pytest.raises(RunUnprotected, match="not counted"):
        scene.book.spend("r-1", 1, "a")


def test_without_a_budget_everything_is_noted_and_nothing_refused(scene: Scene) -> None:
    scene.register()
    scene.reserve("r-1", steps(1000))
    receipt = scene.book.spend("r-1", 1, "a", [steps(2000)])
    assert (receipt.budgets, receipt.spent) == ((), (steps(2000),))


def test_what_is_not_in_the_book(scene: Scene) -> None:
    with pytest.raises(NotFoundError, match="heart"):
        scene.reserve("r-1", steps(1))
    with pytest.raises(NotFoundError, match="r-1"):
        scene.book.spend("r-1", 1, "a", [steps(1)])


def test_what_fails_half_way_is_forgotten(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    scene.reserve("r-1", steps(10))
    head = scene.book.head()

    def fail() -> None:
        with scene.book.journal.writing() as pen:
            pen.write(Closed(run="r-1"))
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    assert scene.book.head() == head
    assert scene.book.spend("r-1", 1, "a", [steps(1)]).entry.seq == head[0] + 1


def test_all_files_are_private(scene: Scene) -> None:
    scene.register()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in scene.home.path.glob("ledger.*")}
    assert modes == {"ledger.db": 0o600, "ledger.head": 0o600, "ledger.key": 0o600}


def test_figures_come_from_the_accountant(tmp_path: Path) -> None:
    """Two runs composed are less than their epsilons added, and a plan calibrated for the budget fits exactly."""
    scene = Scene(tmp_path)
    scene.register()
    noise = calibrate(target_epsilon=3.0, delta=1e-5, sampling_rate=0.05, num_steps=200)
    run = SampledGaussian(sampling_rate=0.05, noise_multiplier=noise, num_steps=200)
    scene.budget(3.0)
    scene.reserve("r-1", run)
    half = SampledGaussian(sampling_rate=0.05, noise_multiplier=noise, num_steps=100)
    statement = scene.stated(scene.book.spend("r-1", 1, "a", [half]))
    assert statement.epsilon == epsilon([half], delta=1e-5) < 3.0
    with pytest.raises(BudgetExceeded):
        scene.reserve("r-2", half)
    scene.budget(5.9)
    scene.reserve("r-2", run)
    assert epsilon([run, run], delta=1e-5) < 5.9
