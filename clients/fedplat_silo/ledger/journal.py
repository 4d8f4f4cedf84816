"""Transactions on the book: what it says so far, read once and kept up to date, and entries added to it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fedplat_silo.ledger.entries import NO_HASH, Behind, Entry, Fields, next_entry
from fedplat_silo.ledger.errors import BookBehind, BookDamaged
from fedplat_silo.ledger.rolls import Change
from fedplat_silo.ledger.state import State
from fedplat_silo.ledger.storage import Note, Storage, append, entries_after

RECONCILE = "Join once, so that the server hands over its copy, then run: fedplat client budget reconcile"
VERIFY = "`fedplat client budget verify` says what was changed. Restore the silo's home from a backup, then reconcile."


class Pen:
    """A transaction on the book."""

    def __init__(self, connection: sqlite3.Connection, state: State) -> None:
        self.connection = connection
        self.state = state

    def write(self, fields: Fields, members: Iterable[Change] = ()) -> Entry:
        """Adds an entry; on disk when the transaction ends."""
        entry = next_entry(self.state.last, fields)
        append(self.connection, entry, members)
        self.state.apply(entry)
        return entry

    def entry(self, seq: int) -> Entry:
        """An entry that is there."""
        return next(entries_after(self.connection, seq - 1))


class Journal:
    """Thread-safe, and safe against other processes at the same book.

    A book that does not reach as far as this silo once noted gets an entry that says so, before any other.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._state = State()

    @contextmanager
    def writing(self) -> Iterator[Pen]:
        """The only writer until it ends; then on disk, or as it was if anything is raised."""
        with self._lock:
            with self._transaction() as (pen, note):
                told = missed(pen.state, note)
                if told is not None:  # on disk of its own, for what was asked may be refused
                    pen.write(told)
            with self._transaction() as (pen, _):
                yield pen

    @contextmanager
    def reading(self) -> Iterator[Pen]:
        """One moment of the book, read anew. Raises BookDamaged if its chain is broken."""
        with self._storage.reading() as connection:
            state = State()
            catch_up(connection, state)
            yield Pen(connection, state)

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Pen, Note | None]]:
        note = self._storage.note()  # before the book: whoever writes, writes the book first
        try:
            with self._storage.writing() as connection:
                if not _is_still(connection, self._state.last):
                    self._state = State()
                catch_up(connection, self._state)
                yield Pen(connection, self._state), note
        except BaseException:
            self._state = State()  # it may be ahead of what is on disk
            raise
        last = self._state.last
        if last is not None and (note is None or note.seq != last.seq):
            self._storage.set_note(Note(last.seq, last.hash))


def catch_up(connection: sqlite3.Connection, state: State) -> None:
    """Takes in what `state` does not have yet. Raises BookDamaged."""
    try:
        for entry in entries_after(connection, len(state.hashes)):
            state.apply(entry)
    except (ValueError, TypeError) as error:
        raise BookDamaged(f"the privacy ledger was changed: {error}", hint=VERIFY) from error


def missed(state: State, note: Note | None) -> Behind | None:
    """What the silo once noted and the book does not have; None if nothing is missing."""
    num = len(state.hashes)
    if note is None:  # a crash at its making leaves a book of one entry without a note
        return None if num <= 1 else Behind(told_seq=num, told_head=NO_HASH, source="note")
    if note.seq <= num and state.hashes[note.seq - 1] == note.hash:
        return None
    return Behind(told_seq=note.seq, told_head=note.hash, source="note")


def lost(told: Behind, state: State) -> BookBehind:
    """In words: entries are missing."""
    who = "of which the server has a signed statement" if told.source == "server" else "which this silo once noted"
    missing = f"entry {told.told_seq} ({told.told_head[:8]}), {who}, is not in it; it has {len(state.hashes)} entries"
    if told.told_head == NO_HASH:
        missing = "the note of how many they are (ledger.head) is gone"
    return BookBehind(
        f"the privacy ledger lacks entries that were made: {missing}. Its end was cut off, or an old copy was restored",
        hint=RECONCILE,
    )


def _is_still(connection: sqlite3.Connection, last: Entry | None) -> bool:
    return last is None or next(entries_after(connection, last.seq - 1), None) == last
