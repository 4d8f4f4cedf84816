"""The book as people look at it: each population with its datasets, its budget, and what its runs spent of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from fedplat.privacy import epsilon
from fedplat_silo.ledger.receipts import tightest
from fedplat_silo.ledger.rules import UNPROTECTED
from fedplat_silo.ledger.state import RunBook, State, Steps, events_of

DELTA = 1e-5
"""For the figures of patients that have no budget, whose runs named none."""


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run's page. `spent`: epsilon of this run alone; figures of several runs do not add up."""

    run: str
    dataset: str
    mode: str
    is_open: bool
    num_releases: int
    num_steps: int
    spent: float


@dataclass(frozen=True, slots=True)
class Overview:
    """A population. `budget`: None if it has none. `committed`: epsilon with all that open runs may still spend."""

    population: str
    datasets: tuple[str, ...]
    unit: str
    budget: float | None
    delta: float
    spent: float
    committed: float
    num_lost_steps: int
    runs: tuple[RunLine, ...]

    def facts(self) -> dict[str, object]:
        """For JSON, which has no word for infinity: null."""
        found = asdict(self)
        for each in (found, *found["runs"]):
            each |= {key: None for key, value in each.items() if isinstance(value, float) and math.isinf(value)}
        return found


def look_over(state: State) -> list[Overview]:
    """Every population. Composes events, which takes up to seconds."""
    return [_overview(state, population) for population in state.populations()]


def _overview(state: State, population: str) -> Overview:
    pages = list(state.runs_of(population))
    budget = tightest(state.budgets(population))
    delta = budget.delta if budget else next((page.reserved.delta for page in pages), DELTA)
    spent = state.spent(population)
    datasets = state.datasets_of(population)
    unit = "patient" if any(dataset.patient_column for dataset in datasets) else "record"
    return Overview(
        population=population,
        datasets=tuple(dataset.name for dataset in datasets),
        unit=budget.unit if budget else unit,
        budget=budget.epsilon if budget else None,
        delta=delta,
        spent=_epsilon(spent, delta),
        committed=_epsilon(state.committed(population), delta),
        num_lost_steps=state.lost(population).total(),
        runs=tuple(_line(page, delta) for page in pages),
    )


def _line(page: RunBook, delta: float) -> RunLine:
    return RunLine(
        run=page.reserved.run,
        dataset=page.reserved.dataset,
        mode=page.reserved.mode,
        is_open=page.is_open,
        num_releases=len(page.spends),
        num_steps=page.spent.total(),
        spent=math.inf if page.reserved.mode == UNPROTECTED else _epsilon(page.spent, delta),
    )


def _epsilon(steps: Steps, delta: float) -> float:
    return epsilon(events_of(steps), delta=delta)
