"""A silo's book: found, or begun."""

from __future__ import annotations

from pathlib import Path

from fedplat.errors import NotFoundError
from fedplat.home import SiloHome
from fedplat_silo.ledger.book import Book
from fedplat_silo.ledger.entries import Genesis
from fedplat_silo.ledger.errors import BookDamaged
from fedplat_silo.ledger.journal import VERIFY, Journal
from fedplat_silo.ledger.patients import PatientKey
from fedplat_silo.ledger.storage import Storage


def key_file(home: SiloHome) -> Path:
    """The key to the patients' hashes; without it the book is of no use."""
    return home.ledger.with_suffix(".key")


def begin_book(home: SiloHome) -> Book:
    """The silo's book, begun if there is none. Raises BookDamaged for one that is not as it was written."""
    storage = Storage(home.ledger)
    if storage.note() is None:  # none yet, or a crash came before its first entry was noted
        storage.create()
    journal = Journal(storage)
    with journal.writing() as pen:
        if pen.state.genesis is None:
            key = PatientKey.create(key_file(home))
            pen.write(Genesis(silo=home.name, key_check=key.check))
            return Book(journal, key)
        key = PatientKey.load(key_file(home))
        if (pen.state.genesis.silo, pen.state.genesis.key_check) != (home.name, key.check):
            whose = pen.state.genesis.silo
            raise BookDamaged(f"the privacy ledger is of silo {whose}, or was written with another key", hint=VERIFY)
    return Book(journal, key)


def find_book(home: SiloHome) -> Book:
    """The silo's book. Raises NotFoundError if it was never begun."""
    existing(home)
    return begin_book(home)


def existing(home: SiloHome) -> Storage:
    """Where the silo's book is. Raises NotFoundError if it was never begun."""
    storage = Storage(home.ledger)
    if not storage.exists():
        raise NotFoundError(
            f"silo {home.name} has no privacy ledger yet",
            hint="It begins with the first budget: fedplat client budget set --dataset NAME --epsilon E --delta D",
        )
    return storage
