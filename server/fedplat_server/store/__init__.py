"""The SQL store: every fact of the federation that must outlive the process. SQLite or PostgreSQL.

    store = open_store("sqlite:////srv/fedplat/fedplat.db")
    store.silos, store.runs, store.rounds, store.events

Every write is one short transaction, and the writes that matter append their event in it. docs/schema.md tells
the tables.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from fedplat.errors import StoreUnavailableError
from fedplat_server.store.events import Events
from fedplat_server.store.ledgers import LedgerStatements
from fedplat_server.store.migrations import migrate
from fedplat_server.store.records import (
    Evaluation,
    Event,
    Invite,
    LedgerRelease,
    LedgerStatement,
    Round,
    Run,
    RunSilo,
    SecureEpoch,
    SecureStep,
    SecureStepFields,
    Silo,
    SiloRound,
    SiloRoundFields,
)
from fedplat_server.store.rounds import Rounds
from fedplat_server.store.runs import Runs
from fedplat_server.store.secure import Secure
from fedplat_server.store.session import Database
from fedplat_server.store.silos import Silos
from fedplat_server.store.tables import InviteKind, RunSiloState, SiloState, Split

__all__ = [
    "Evaluation",
    "Event",
    "Invite",
    "InviteKind",
    "LedgerRelease",
    "LedgerStatement",
    "Round",
    "Run",
    "RunSilo",
    "RunSiloState",
    "SecureEpoch",
    "SecureStep",
    "SecureStepFields",
    "Silo",
    "SiloRound",
    "SiloRoundFields",
    "SiloState",
    "Split",
    "Store",
    "open_store",
]

MIN_PAUSE_S = 0.2
MAX_PAUSE_S = 10.0


class Store:
    """The repositories of one database, one a noun. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.silos = Silos(database)
        self.runs = Runs(database)
        self.rounds = Rounds(database)
        self.secure = Secure(database)
        self.ledgers = LedgerStatements(database)
        self.events = Events(database)

    def __repr__(self) -> str:
        return f"Store({self._database.name})"

    def wait_until_back(self, stop: threading.Event, limit_s: float) -> bool:
        """After a StoreUnavailableError: wait until the database can be written again.

        False when `stop` is set, or after `limit_s` (at most 15 s late).
        """
        deadline, pause_s = time.monotonic() + limit_s, MIN_PAUSE_S
        while not stop.wait(max(0.0, min(pause_s, deadline - time.monotonic()))):
            with suppress(StoreUnavailableError):
                self._database.check_usable()
                return True
            if time.monotonic() >= deadline:
                return False
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return False

    def close(self) -> None:
        """Close every connection."""
        self._database.close()


def open_store(url: str) -> Store:
    """Open the database behind `url`, creating or migrating its tables.

    `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`. Safe to call from several processes at once.
    Raises StoreUnavailableError where the database is away, StoreError where it cannot be used, or is another program's
    or a newer version's.
    """
    database = Database(url)
    try:
        with database.write() as connection:
            migrate(connection, database.name)
    except BaseException:
        database.close()
        raise
    return Store(database)
