"""The book on disk: an SQLite file that only grows, and a note beside it of how far it had come.

One file at rest (a rollback journal, not a write-ahead log, so that a copy of it is whole); `synchronous = EXTRA` is
FULL and also syncs the folder, without which a power cut could undo a commit in this mode. The note (`ledger.head`)
is written after every commit: a book that is restored or cut off by itself no longer reaches it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedplat.durable import filesystem, sync_folder, write_atomic
from fedplat_silo.ledger.entries import Entry
from fedplat_silo.ledger.errors import BookDamaged, LedgerError

LOCK_TIMEOUT_S = 60.0
_VERSION = 1
_RESTORE = "Restore the silo's home from its last backup, then run: fedplat client budget reconcile"
SCHEMA = {
    "entries": """CREATE TABLE entries (
        seq INTEGER PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL, fields TEXT NOT NULL,
        prev_hash TEXT NOT NULL, hash TEXT NOT NULL)""",
    "members": """CREATE TABLE members (
        seq INTEGER NOT NULL REFERENCES entries (seq), id BLOB NOT NULL, present INTEGER NOT NULL,
        PRIMARY KEY (seq, id)) WITHOUT ROWID""",
    "members_by_id": "CREATE INDEX members_by_id ON members (id)",
    "entries_next": """CREATE TRIGGER entries_next BEFORE INSERT ON entries
        WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM entries)
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
    "members_next": """CREATE TRIGGER members_next BEFORE INSERT ON members
        WHEN NEW.seq <> (SELECT max(seq) FROM entries)
          OR EXISTS (SELECT 1 FROM members WHERE seq = NEW.seq AND id = NEW.id)
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
} | {
    f"{table}_no_{action.lower()}": f"""CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table}
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"""
    for table in ("entries", "members")
    for action in ("UPDATE", "DELETE")
}
# The rule on INSERT also closes INSERT OR REPLACE, which deletes without a DELETE trigger.


@dataclass(frozen=True, slots=True)
class Note:
    """The last entry that this silo knows to have made."""

    seq: int
    hash: str


class Storage:
    """`ledger.db` and `ledger.head` of a silo's home. Every call opens the file anew; processes take turns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note_path = path.with_suffix(".head")

    def exists(self) -> bool:
        """Whether there is a book, or there once was one."""
        return self.path.exists() or self._note_path.exists()

    def create(self) -> None:
        """Makes the file and its tables; on disk when this returns. One that a crash left half-made is finished."""
        with self._errors():
            os.close(filesystem.reopen(self.path, 0o600))
            sync_folder(self.path.parent)
            with closing(self._connect()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    for statement in SCHEMA.values():
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
                connection.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One moment of the book."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The only writer until it ends; on disk at the end, or as it was if anything is raised."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def note(self) -> Note | None:
        """How far the book has come; None if nobody noted it. Raises BookDamaged."""
        try:
            seq, head = self._note_path.read_text(encoding="ascii").split()
            return Note(int(seq), head)
        except FileNotFoundError:
            return None
        except ValueError:
            raise BookDamaged(f"{self._note_path} is damaged", hint=_RESTORE) from None

    def set_note(self, note: Note) -> None:
        """On disk when this returns."""
        write_atomic(self._note_path, f"{note.seq} {note.hash}\n".encode())

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._errors(), closing(self._connect()) as connection:
            connection.execute(begin)
            try:
                self._check_version(connection)
                yield connection
            except BaseException:
                if connection.in_transaction:  # a full disk has ended it already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        if not self.path.exists():
            raise BookDamaged(f"the privacy ledger {self.path} is gone", hint=_RESTORE)
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw", uri=True, timeout=LOCK_TIMEOUT_S, isolation_level=None
        )
        for pragma in ("journal_mode = DELETE", "synchronous = EXTRA", "foreign_keys = ON", "recursive_triggers = ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _check_version(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise LedgerError(
                f"the privacy ledger {self.path} was made by a newer version of fedplat",
                hint="Install that version again.",
            )
        if version < _VERSION:
            raise BookDamaged(f"the privacy ledger {self.path} is empty", hint=_RESTORE)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: sqlite3.Error) -> Exception:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return LedgerError(
                    f"the privacy ledger {self.path} is held by another process",
                    hint="Another fedplat command is at work on it, or a backup tool locks it: try again.",
                )
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return BookDamaged(f"the privacy ledger {self.path} cannot be read: {error}", hint=_RESTORE)
            case _:
                return LedgerError(
                    f"the privacy ledger {self.path} cannot be used: {error}",
                    hint="Check that its disk has room and that this user may write to it.",
                )


def entries_after(connection: sqlite3.Connection, seq: int) -> Iterator[Entry]:
    """The entries from `seq` on, without it, as they are in the file."""
    query = "SELECT seq, at, kind, fields, prev_hash, hash FROM entries WHERE seq > ? ORDER BY seq"
    return (Entry(*row) for row in connection.execute(query, (seq,)))


def append(connection: sqlite3.Connection, entry: Entry, members: Iterable[tuple[bytes, bool]] = ()) -> None:
    """Adds an entry, and the keyed hashes that came or went with it."""
    row = (entry.seq, entry.at, entry.kind, entry.text, entry.prev_hash, entry.hash)
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)
    connection.executemany(
        "INSERT INTO members VALUES (?, ?, ?)", ((entry.seq, one, int(present)) for one, present in members)
    )


def check_schema(connection: sqlite3.Connection) -> None:
    """Raises ValueError if the tables or the rules that only let them grow are not ours."""
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    for name, sql in SCHEMA.items():
        if found.get(name) != sql:
            raise ValueError(f"the rule or table {name} was removed or changed")
