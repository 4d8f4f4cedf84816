"""What a run may reserve and spend of its patients' budget."""

from __future__ import annotations

from fedplat.errors import NotFoundError
from fedplat.ledger import Unit
from fedplat.privacy import epsilon
from fedplat_silo.ledger.errors import BudgetExceeded, Figures, LedgerError, RunUnprotected
from fedplat_silo.ledger.journal import lost
from fedplat_silo.ledger.state import Budget, Dataset, RunBook, State, Steps, events_of

UNPROTECTED = "none"


def dataset_of(state: State, name: str) -> Dataset:
    """Raises NotFoundError for a dataset that was never registered."""
    if name not in state.datasets:
        raise NotFoundError(
            f"dataset {name} is not in the privacy ledger",
            hint=f"fedplat client budget set --dataset {name} --epsilon E --delta D",
        )
    return state.datasets[name]


def check_current(state: State) -> None:
    """Raises BookBehind while entries are known to be missing."""
    if state.behind:
        raise lost(state.behind[-1], state)


def check_protection(state: State, dataset: str, run: str, mode: str, unit: Unit) -> None:
    """Raises RunUnprotected if the dataset has a budget that this run would not count against."""
    population = state.population(dataset)
    budgets = state.budgets(population) if population else []
    if budgets and mode == UNPROTECTED:
        raise RunUnprotected(
            f"run {run} has no differential privacy, and dataset {dataset} has a privacy budget",
            hint='Set [privacy] mode = "record" in the run spec.',
        )
    if unit == "record" and any(budget.unit == "patient" for budget in budgets):
        raise RunUnprotected(
            f"run {run} protects single records, and the budget of dataset {dataset} is for patients",
            hint='Set [privacy] unit = "patient" in the run spec.',
        )


def check_plan(state: State, run: str, dataset: Dataset, planned: Steps) -> None:
    """Raises BudgetExceeded unless the rest of the plan fits beside all that is spent and reserved."""
    population = state.root(dataset.population)
    page = state.runs.get(run)
    asked = planned - page.spent if page else planned
    committed = state.committed(population, without=run)
    for budget in state.budgets(population):
        _check(state, budget, run, dataset.name, asked, committed, committed + asked)


def check_release(state: State, page: RunBook, released: Steps) -> None:
    """Raises BudgetExceeded if the release is more than the budget, or than what the run may take of it."""
    run, dataset = page.reserved.run, page.reserved.dataset
    population = state.root(page.reserved.population)
    budgets = state.budgets(population)
    if budgets and not released:
        raise RunUnprotected(
            f"run {run} would release something of dataset {dataset} that is not counted",
            hint="A dataset with a privacy budget takes part with noise only.",
        )
    committed = state.committed(population, without=run)
    is_reserved = not released - page.rest
    unspent = page.planned - page.spent - released
    for budget in budgets:
        # What others have reserved does not stop a release within the run's own reservation.
        total = state.spent(population) + released if is_reserved else committed + released + unspent
        _check(state, budget, run, dataset, released, committed, total)


def open_page(state: State, run: str) -> RunBook:
    """Raises LedgerError if the run has nothing reserved."""
    page = state.runs.get(run)
    if page is None or not page.is_open:
        raise LedgerError(
            f"run {run} has nothing reserved in the privacy ledger",
            hint="It reserves again when it joins again; after `budget reconcile` every run has to.",
        )
    return page


def _check(state: State, budget: Budget, run: str, dataset: str, asked: Steps, committed: Steps, total: Steps) -> None:
    if not asked:
        return
    reached = _epsilon(total, budget)
    if reached <= budget.epsilon:
        return
    population = state.population(dataset)
    figures = Figures(
        budget=budget.epsilon,
        delta=budget.delta,
        spent=_epsilon(state.spent(population), budget) if population else 0.0,
        committed=_epsilon(committed, budget),
        asked=_epsilon(asked, budget),
        total=reached,
    )
    raise BudgetExceeded(run, dataset, figures)


def _epsilon(steps: Steps, budget: Budget) -> float:
    return epsilon(events_of(steps), delta=budget.delta)
