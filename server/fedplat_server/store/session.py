"""The engine behind a URL, its transactions, and driver errors in words.

There is one writer at a time on both databases (SQLite: BEGIN IMMEDIATE, PostgreSQL: one advisory lock), so
inside `write` nothing that was read can change before the commit, and no code needs to lock rows or to retry.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from fedplat.errors import ConflictError, StoreError

LOCK_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 10
_WRITER_LOCK = 0x666564706C6174  # "fedplat": PostgreSQL's advisory locks are named by a number
_PG_LOCK = text("SELECT set_config('lock_timeout', :timeout, true), pg_advisory_xact_lock(:lock)")
_URL_HINT = "Use sqlite:///PATH/fedplat.db or postgresql://USER:PASSWORD@HOST/DATABASE."


class Database:
    """One SQL database. Thread-safe; `name` names it without its password."""

    def __init__(self, url: str) -> None:
        """Raises StoreError for a URL that is not understood; connects to nothing yet."""
        parsed = _parse(url)
        self.name = _name(parsed)
        self._password = parsed.password
        with self._errors():
            self.engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only look, in one transaction that is rolled back."""
        with self._errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is the only writer until it ends."""
        writer = self.engine.execution_options(fedplat_write=True)
        with self._errors(), writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(_PG_LOCK, {"timeout": f"{LOCK_TIMEOUT_S}s", "lock": _WRITER_LOCK})
            yield connection

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise ConflictError(f"the database {self.name} refused a row: {self._say(error)}") from error
        except (DBAPIError, PoolTimeoutError, OSError, ImportError) as error:
            raise StoreError(
                f"the database {self.name} cannot be used: {self._say(error)}",
                hint="Check that it is running and reachable, and that this user may write to it; then try again.",
            ) from error

    def _say(self, error: Exception) -> str:
        # The first line only: PostgreSQL's further ones quote the row.
        words = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        return words.replace(self._password, "***") if self._password else words


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not chained: the parser's error quotes the whole URL, with its password.
        raise StoreError("the database URL is not understood", hint=_URL_HINT) from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"fedplat does not work on {backend}", hint=_URL_HINT)
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("an SQLite database needs a file", hint=_URL_HINT)
    return parsed


def _name(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return URL.create("postgresql", url.username, None, url.host, url.port, url.database).render_as_string()


def _sqlite(url: URL) -> Engine:
    # Made here, not by SQLite, so that it is private from its first byte; SQLite gives its WAL the same mode.
    os.close(os.open(str(url.database), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"),
        hide_parameters=True,
        connect_args={"timeout": LOCK_TIMEOUT_S, "isolation_level": None},
    )
    event.listen(engine, "connect", _sqlite_connected)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def _sqlite_connected(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    # A transaction that reads first and then writes fails at once when another has written in between,
    # whatever the timeout: a writer takes the lock before it reads.
    writes = connection.get_execution_options().get("fedplat_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_pre_ping=True,
        # A snapshot older than the writer lock would show what the last writer has replaced.
        isolation_level="READ COMMITTED",
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
    )
