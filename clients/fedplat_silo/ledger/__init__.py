"""The silo's privacy ledger: what its patients were charged, for life, and who took part in what.

`Keeper` is what runs use, `begin_book` and `find_book` open the book of a home. Heavy libraries load when a figure is
computed, not before.
"""

from __future__ import annotations

from fedplat_silo.ledger.book import Book, Registration
from fedplat_silo.ledger.errors import (
    BookBehind,
    BookDamaged,
    BudgetExceeded,
    Figures,
    LedgerError,
    RunUnprotected,
)
from fedplat_silo.ledger.keeper import Keeper, Known, plan_run
from fedplat_silo.ledger.opening import begin_book, find_book
from fedplat_silo.ledger.patients import call_the_roll
from fedplat_silo.ledger.subjects import find_subject
from fedplat_silo.ledger.verification import Verdict, verify_book

__all__ = [
    "Book",
    "BookBehind",
    "BookDamaged",
    "BudgetExceeded",
    "Figures",
    "Keeper",
    "Known",
    "LedgerError",
    "Registration",
    "RunUnprotected",
    "Verdict",
    "begin_book",
    "call_the_roll",
    "find_book",
    "find_subject",
    "plan_run",
    "verify_book",
]
