"""The tests can fail: each broken variant of the ledger, made by replacing one function, fails a named test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedplat_silo.ledger import rules
from fedplat_silo.ledger.book import Book
from fedplat_silo.ledger.state import State, Steps, steps_of
from tests.unit.ledger import test_book
from tests.unit.ledger.scene import Scene

pytestmark = pytest.mark.usefixtures("quick")

_spend = Book.spend


def of_the_last_round(self: State, population: str) -> Steps:
    """The accountant is restarted each round."""
    rounds = (list(run.spends.values())[-1:] for run in self.runs_of(population))
    return sum((steps_of(e.fact() for e in spent.events) for last in rounds for spent in last), Steps())


def of_the_dearest_run(self: State, population: str) -> Steps:
    """The accountant is restarted each run."""
    return max((run.spent for run in self.runs_of(population)), key=lambda steps: steps.total(), default=Steps())


def as_planned(self: State, population: str) -> Steps:
    """What was planned, instead of what happened."""
    return sum((run.planned for run in self.runs_of(population)), Steps())


def once_a_round(self: Book, run: str, round_number: int, attempt: str, events: object = ()) -> object:
    """A round that is trained again is taken for the same release."""
    return _spend(self, run, round_number, "a", events)  # type: ignore[arg-type]


def without_reservations(self: State, population: str, without: str | None = None) -> Steps:
    """Two runs may each be promised the last of a budget."""
    return self.spent(population)


def unchecked(*_: object) -> None:
    """What leaves without noise, metrics for one, is not counted."""


VARIANTS: list[tuple[object, str, Callable[..., object], Callable[[Scene], None]]] = [
    (State, "spent", of_the_last_round, test_book.test_a_plan_that_fits_is_spent_round_by_round),
    (
        State,
        "spent",
        of_the_dearest_run,
        test_book.test_repeats_beyond_the_reservation_take_what_nobody_else_has_reserved,
    ),
    (State, "spent", as_planned, test_book.test_the_same_release_is_charged_once_and_another_one_anew),
    (Book, "spend", once_a_round, test_book.test_the_same_release_is_charged_once_and_another_one_anew),
    (State, "committed", without_reservations, test_book.test_what_was_reserved_and_not_spent_is_free_after_close),
    (rules, "check_release", unchecked, test_book.test_a_budget_refuses_what_it_does_not_count),
]


@pytest.mark.parametrize(
    ("owner", "name", "broken", "test"), VARIANTS, ids=[variant[2].__name__ for variant in VARIANTS]
)
def test_is_noticed(
    owner: object,
    name: str,
    broken: Callable[..., object],
    test: Callable[[Scene], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test(Scene(tmp_path / "whole"))
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(Scene(tmp_path / "broken"))
