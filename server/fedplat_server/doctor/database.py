"""Checks of the database: reachable, of this version, whole, and written by a clock that runs forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from fedplat.doctor import Check, Finding, failed, ok
from fedplat.identity.requests import WINDOW_S
from fedplat_server.doctor.visit import Visit
from fedplat_server.store.events import Events
from fedplat_server.store.migrations import check_version
from fedplat_server.store.tables import events

_TIMEOUT_S = 600.0  # a long event log is walked whole
_RESTORE = "Restore the server from a backup: fedplat server restore DIR --home NEW"


def checks(visit: Visit) -> Iterator[Check]:
    """From the connection to the last event."""
    yield Check("database", lambda: _usable(visit), ("settings",), timeout_s=30)
    yield Check("integrity", lambda: _whole(visit), ("database",), _TIMEOUT_S)
    yield Check("event log", lambda: _events(visit), ("database",), _TIMEOUT_S)
    yield Check("clock", lambda: _clock(visit), ("database",))


def _usable(visit: Visit) -> Finding:
    url = make_url(visit.settings.database_url(visit.home))
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return failed(f"the database {url.database} is gone", _RESTORE)  # opening it would make an empty one
    with closing(visit.open_database()) as database:
        with database.read() as connection:
            check_version(connection, database.name)
        database.check_usable()
        return ok(f"{database.name} can be written, and its tables are this version's")


def _whole(visit: Visit) -> Finding:
    with closing(visit.open_database()) as database, database.read() as connection:
        if connection.dialect.name != "sqlite":
            return ok("PostgreSQL looks after it")
        problems = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(5)")]
        if problems != ["ok"]:
            return failed(f"the database is damaged: {problems[0].splitlines()[-1]}", _RESTORE)
        if orphans := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
            return failed(f"{len(orphans)} rows belong to nothing, the first in {orphans[0][0]}", _RESTORE)
    return ok("no page is damaged, no row belongs to nothing")


def _events(visit: Visit) -> Finding:
    with closing(visit.open_database()) as database:
        Events(database).verify()
        with database.read() as connection:
            num_events = connection.execute(select(func.count()).select_from(events)).scalar_one()
    return ok(f"{num_events} events, as they were written")


def _clock(visit: Visit) -> Finding:
    with closing(visit.open_database()) as database, database.read() as connection:
        last: datetime | None = connection.execute(select(func.max(events.c.at))).scalar_one()
    now = datetime.now(UTC)
    if last is not None and last > now + timedelta(seconds=WINDOW_S):
        return failed(
            f"it is {now:%Y-%m-%d %H:%M} UTC by this machine's clock, and the last event was at {last:%Y-%m-%d %H:%M}",
            f"The clock was turned back. Set it: timedatectl set-ntp true; silos may differ by {WINDOW_S:.0f} s.",
        )
    return ok(f"{now:%Y-%m-%d %H:%M:%S} UTC, after the last event; silos compare it with theirs")
