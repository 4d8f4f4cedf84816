"""The database as it is at one moment, and copies of it: always SQLite files, whatever the original is.

Rows travel by the column types, which read back the same from both databases. So a backup needs no tools and no version
of PostgreSQL, and can be restored into either database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sqlalchemy import Connection, func, insert, inspect, select, update

from fedplat.errors import ConflictError
from fedplat_server.store.events import GENESIS
from fedplat_server.store.migrations import check_version, migrate
from fedplat_server.store.records import Round, Run
from fedplat_server.store.rows import every
from fedplat_server.store.session import Database
from fedplat_server.store.tables import events, invites, metadata, rounds, runs
from fedplat_server.transitions import RoundState

_BATCH = 1000


@dataclass(frozen=True)
class Snapshot:
    """A reader that sees one moment, however long it takes and whatever is written meanwhile."""

    name: str
    kind: str
    connection: Connection

    def runs(self) -> Sequence[Run]:
        """Every run, oldest first."""
        return every(self.connection, Run, select(runs).order_by(runs.c.created_at, runs.c.id))

    def committed(self, run_id: str) -> Mapping[int, str]:
        """The SHA-256 of the weights of each committed round of a run."""
        query = select(rounds).where(rounds.c.run_id == run_id, rounds.c.state == RoundState.COMMITTED)
        return {row.number: row.weights_sha256 or "" for row in every(self.connection, Round, query)}

    def head(self) -> tuple[int, str]:
        """Number and hash of the last event."""
        last = self.connection.execute(select(events.c.seq, events.c.hash).order_by(events.c.seq.desc()).limit(1))
        row = last.first()
        return (row.seq, row.hash) if row else (0, GENESIS)

    def copy_to(self, path: Path) -> None:
        """Write it all into a new SQLite file with mode 0600. Raises StoreError."""
        target = Database(f"sqlite:///{path}")
        try:
            if self.kind == "sqlite":
                _copy_pages(self.connection, target)
            else:
                with target.write() as connection:
                    migrate(connection, target.name)
                    _copy_rows(self.connection, connection)
        finally:
            target.close()


@contextmanager
def snapshot(url: str) -> Iterator[Snapshot]:
    """Look at the database behind `url` as it is now; nothing in it changes. Raises StoreError."""
    database = Database(url)
    try:
        with database.frozen() as connection:
            check_version(connection, database.name)
            yield Snapshot(database.name, connection.dialect.name, connection)
    finally:
        database.close()


@contextmanager
def filled(url: str, source: Path) -> Iterator[None]:
    """Fill an empty database with the rows of a copy: all of them if the block succeeds, or none.

    Raises ConflictError where the database is not empty, StoreError.
    """
    target, original = Database(url), Database(f"sqlite:///{source}")
    try:
        with target.write() as connection:
            if inspect(connection).get_table_names():
                raise ConflictError(
                    f"the database {target.name} is not empty", hint="Name a new, empty one with --database."
                )
            migrate(connection, target.name)
            with original.read() as rows:
                _copy_rows(rows, connection)
            original.close()
            yield
    finally:
        original.close()
        target.close()


def _copy_pages(connection: Connection, target: Database) -> None:
    # Within the reader's transaction, so that the pages are those of its moment.
    with target.unmanaged() as copy:
        cast(sqlite3.Connection, connection.connection.driver_connection).backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it


def _copy_rows(source: Connection, target: Connection) -> None:
    for table in metadata.sorted_tables:
        query = select(table).order_by(*table.primary_key)
        with source.execute(query, execution_options={"yield_per": _BATCH}) as found:
            for batch in found.mappings().partitions():
                # A run's parent may come after it.
                blank = {"parent_id": None} if table is runs else {}
                target.execute(insert(table), [{**row, **blank} for row in batch])
    parents = source.execute(select(runs.c.id, runs.c.parent_id).where(runs.c.parent_id.is_not(None))).all()
    for run_id, parent_id in parents:
        target.execute(update(runs).where(runs.c.id == run_id).values(parent_id=parent_id))
    if target.dialect.name == "postgresql":
        # The counter behind a key does not see rows that bring theirs along.
        counter = func.pg_get_serial_sequence(invites.name, invites.c.id.name)
        target.execute(select(func.setval(counter, func.coalesce(func.max(invites.c.id), 0) + 1, False)))
