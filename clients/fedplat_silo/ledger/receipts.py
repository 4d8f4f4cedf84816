"""What an entry of the book comes to: where the population stands after it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.ledger import Deed, SignedStatement, Statement, Unit, sign_statement, to_wire
from fedplat.privacy import SampledGaussian, epsilon
from fedplat_silo.ledger.entries import Entry
from fedplat_silo.ledger.state import Budget, RunBook, State, Steps, events_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was done for a run. `spent` and `reserved` are the population's, with all its runs; `events` the deed's own.

    `entry`: the last of the book, that of the deed unless it was done before. `era`: see `fedplat.ledger.Statement`.
    `budgets`: all that have to be kept; empty if the patients have none. `delta`: the tightest one's, else the run's.
    """

    entry: Entry
    era: int
    deed: Deed
    run: str
    round: int | None
    attempt: str | None
    dataset: str
    population: str
    unit: Unit
    events: tuple[SampledGaussian, ...]
    spent: tuple[SampledGaussian, ...]
    reserved: tuple[SampledGaussian, ...]
    budgets: tuple[Budget, ...]
    delta: float

    def signed(self, silo: str, key: ec.EllipticCurvePrivateKey) -> SignedStatement:
        """For the server. Takes what composing the events takes, up to seconds the first time."""
        figure = epsilon(self.spent, delta=self.delta)
        budget = tightest(self.budgets)
        statement = Statement(
            silo=silo,
            era=self.era,
            seq=self.entry.seq,
            head=self.entry.hash,
            at=self.entry.time,
            deed=self.deed,
            run=self.run,
            round=self.round,
            attempt=self.attempt,
            dataset=self.dataset,
            population=self.population,
            unit=self.unit,
            events=to_wire(self.events),
            spent=to_wire(self.spent),
            reserved=to_wire(self.reserved),
            epsilon=figure if math.isfinite(figure) else None,
            delta=self.delta,
            budget=budget.epsilon if budget else None,
        )
        return sign_statement(key, statement)


def receipt(
    state: State,
    deed: Deed,
    run: RunBook,
    events: Iterable[SampledGaussian] = (),
    at: tuple[int, str] | None = None,
) -> Receipt:
    """The receipt for what `state` has; `at`: the round and attempt of a release."""
    assert state.last is not None
    reserved = run.reserved
    population = state.root(reserved.population)
    spent = state.spent(population)
    budgets = tuple(state.budgets(population))
    budget = tightest(budgets)
    open_rests = sum((other.rest for other in state.runs_of(population)), Steps())
    return Receipt(
        entry=state.last,
        era=state.era,
        deed=deed,
        run=reserved.run,
        round=at[0] if at else None,
        attempt=at[1] if at else None,
        dataset=reserved.dataset,
        population=population,
        unit=reserved.unit,
        events=tuple(events),
        spent=events_of(spent),
        reserved=events_of(open_rests),
        budgets=budgets,
        delta=budget.delta if budget else reserved.delta,
    )


def tightest(budgets: Iterable[Budget]) -> Budget | None:
    """The one that is shown where there are several: all of them are kept."""
    return min(budgets, key=lambda budget: (budget.epsilon, budget.delta), default=None)
