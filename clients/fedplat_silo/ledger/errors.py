"""What the ledger refuses, and why.

    LedgerError
    ├── BudgetExceeded   the plan, or the release, does not fit into what is left of the budget
    ├── RunUnprotected   a run without privacy, or with a weaker unit, on patients that have a budget
    ├── BookBehind       the book lacks entries that were made: an old copy was restored
    └── BookDamaged      the book was changed behind its back

All say figures and names only, never an id or a value of a patient. `code` and `words` are what may leave the silo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedplat.errors import FedplatError
from fedplat.privacy.values import round_up


class LedgerError(FedplatError):
    """The ledger cannot do what it was asked."""

    code: ClassVar[str] = "ledger"

    @property
    def words(self) -> dict[str, str]:
        """The parameters of `code`."""
        return {}


class RunUnprotected(LedgerError):
    """A run that would release something that the budget does not count."""

    code = "run_unprotected"


class BookBehind(LedgerError):
    """Entries that this silo once made are not in the book: nothing may be spent until they are booked again."""

    code = "ledger_behind"


class BookDamaged(LedgerError):
    """The book is not as it was written."""

    code = "ledger_damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Epsilons at `delta`, each composed from events; they do not add up.

    `spent`: what happened. `committed`: with what other open runs may still spend. `asked`: the plan or release alone.
    `total`: all of it together, which is more than `budget`.
    """

    budget: float
    delta: float
    spent: float
    committed: float
    asked: float
    total: float


class BudgetExceeded(LedgerError):
    """It does not fit; `figures` say by how much."""

    code = "budget_exceeded"

    def __init__(self, run: str, dataset: str, figures: Figures) -> None:
        f = figures
        super().__init__(
            f"run {run} does not fit into the privacy budget of dataset {dataset}: epsilon would reach {_say(f.total)}"
            f" of {f.budget:g} at delta {f.delta:g} (spent {_say(f.spent)}, with other open runs {_say(f.committed)};"
            f" this alone {_say(f.asked)})",
            hint="Plan fewer rounds or more noise, or let the privacy officer raise it: fedplat client budget set",
        )
        self.run = run
        self.dataset = dataset
        self.figures = figures

    @property
    def words(self) -> dict[str, str]:
        """The figures, rounded up to three decimals."""
        f = self.figures
        return {
            "dataset": self.dataset,
            "total": _say(f.total),
            "budget": f"{f.budget:g}",
            "delta": f"{f.delta:g}",
            "spent": _say(f.spent),
            "committed": _say(f.committed),
            "asked": _say(f.asked),
        }


def _say(epsilon: float) -> str:
    return f"{round_up(epsilon, 3):.3f}"
