"""The engine behind a URL, its transactions, and driver errors in words.

There is one writer at a time on both databases (SQLite: BEGIN IMMEDIATE, PostgreSQL: one advisory lock), so
inside `write` nothing that was read can change before the commit, and no code needs to lock rows or to retry.

A database that is away for a while is a StoreUnavailableError within some 10 s, whatever it is that is broken. The
answer to a commit may be what was lost, so whoever asks again must not mind that it was done.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from fedplat.errors import ConflictError, StoreError, StoreUnavailableError

LOCK_TIMEOUT_S = 10
# Twice this is the most that one call waits: for the old connection to be given up, then for a new one.
CONNECT_TIMEOUT_S = 5
_WRITER_LOCK = 0x666564706C6174  # "fedplat": PostgreSQL's advisory locks are named by a number
_PG_LOCK = text("SELECT set_config('lock_timeout', :timeout, true), pg_advisory_xact_lock(:lock)")
# A no-op that reaches the disk: a database that can only be read is not back.
_PROBE = text("UPDATE alembic_version SET version_num = version_num")
_ROOM_BYTES = 1 << 20
_SQLITE_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)
_URL_HINT = "Use sqlite:///PATH/fedplat.db or postgresql://USER:PASSWORD@HOST/DATABASE."


class Database:
    """One SQL database. Thread-safe; `name` names it without its password."""

    def __init__(self, url: str) -> None:
        """Raises StoreError for a URL that is not understood; connects to nothing yet."""
        parsed = _parse(url)
        self.name = _name(parsed)
        self._password = parsed.password
        self._file = parsed.database if parsed.get_backend_name() == "sqlite" else None
        with self._errors():
            self.engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only look, in one transaction that is rolled back."""
        with self._errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def frozen(self) -> Iterator[Connection]:
        """A read-only look that sees one moment from its first query on, whatever is written meanwhile."""
        with self._errors(), self.engine.connect() as connection:
            if self._file is None:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection

    @contextmanager
    def unmanaged(self) -> Iterator[sqlite3.Connection]:
        """The driver's own connection to an SQLite file."""
        with self._errors(), closing(sqlite3.connect(str(self._file))) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is the only writer until it ends."""
        writer = self.engine.execution_options(fedplat_write=True)
        with self._errors(), writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(_PG_LOCK, {"timeout": f"{LOCK_TIMEOUT_S}s", "lock": _WRITER_LOCK})
            yield connection

    def check_usable(self) -> None:
        """Write something that changes nothing. Raises StoreUnavailableError, StoreError."""
        with self.write() as connection:
            connection.execute(_PROBE)
        # The probe fits into a log that has grown already; the next real write might not.
        if self._file is not None and _free_bytes(self._file) < _ROOM_BYTES:
            raise StoreUnavailableError(f"the disk of the database {self.name} is full")

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise ConflictError(f"the database {self.name} refused a row: {self._say(error)}") from error
        except (DBAPIError, sqlite3.Error, PoolTimeoutError, OSError, ImportError) as error:
            kind = StoreUnavailableError if _is_away(error) else StoreError
            raise kind(
                f"the database {self.name} cannot be used: {self._say(error)}",
                hint="Check that it is running and reachable, that its disk has room, and that this user may write to "
                "it; then try again.",
            ) from error

    def _say(self, error: Exception) -> str:
        # The first line only: PostgreSQL's further ones quote the row.
        words = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        return words.replace(self._password, "***") if self._password else words


def _is_away(error: Exception) -> bool:
    if isinstance(error, PoolTimeoutError):
        return True
    cause = getattr(error, "orig", error)
    if isinstance(cause, sqlite3.Error):  # also a missing table is an OperationalError
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_AWAY
    return isinstance(error, OperationalError | InterfaceError)


def _free_bytes(path: str) -> int:
    found = os.statvfs(Path(path).parent)
    return found.f_bavail * found.f_frsize


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
        pool_timeout=CONNECT_TIMEOUT_S,
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
        pool_timeout=CONNECT_TIMEOUT_S,
        # A snapshot older than the writer lock would show what the last writer has replaced.
        isolation_level="READ COMMITTED",
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            # A server whose cable is cut says nothing more: the kernel gives its connections up after this.
            "tcp_user_timeout": CONNECT_TIMEOUT_S * 1000,
            "keepalives_idle": CONNECT_TIMEOUT_S,
            "keepalives_interval": 1,
            "keepalives_count": 2,
        },
    )
