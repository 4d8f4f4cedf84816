"""The event log: who did what when, in a chain of hashes that shows any later change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from sqlalchemy import Connection, insert, select

from fedplat.errors import StoreError
from fedplat_server.store.columns import finite, utc_now
from fedplat_server.store.records import Event
from fedplat_server.store.rows import every, first, record
from fedplat_server.store.session import Database
from fedplat_server.store.tables import events

GENESIS = "0" * 64


def append_event(
    connection: Connection,
    *,
    kind: str,
    actor: str,
    run_id: str | None = None,
    silo_name: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> Event:
    """Append an event in the caller's write transaction, so that it is there if and only if the deed is."""
    last = first(connection, Event, select(events).order_by(events.c.seq.desc()).limit(1))
    draft = Event(
        seq=last.seq + 1 if last else 1,
        at=utc_now(),
        actor=actor,
        kind=kind,
        run_id=run_id,
        silo_name=silo_name,
        detail=cast("dict[str, object]", finite(detail or {})),
        prev_hash=last.hash if last else GENESIS,
        hash="",
    )
    event = replace(draft, hash=draft.expected_hash())
    connection.execute(insert(events).values(**vars(event)))
    return event


class Events:
    """The events of the federation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self,
        *,
        kind: str,
        actor: str,
        run_id: str | None = None,
        silo_name: str | None = None,
        detail: Mapping[str, object] | None = None,
    ) -> Event:
        """Append one event."""
        with self._database.write() as connection:
            return append_event(connection, kind=kind, actor=actor, run_id=run_id, silo_name=silo_name, detail=detail)

    def list(self, *, run_id: str | None = None, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """At most `limit` events with `seq` above `after`, oldest first; of one run or of all."""
        query = select(events).where(events.c.seq > after).order_by(events.c.seq).limit(limit)
        if run_id is not None:
            query = query.where(events.c.run_id == run_id)
        with self._database.read() as connection:
            return every(connection, Event, query)

    def verify(self) -> None:
        """Walk the whole chain; raises StoreError naming the first event that is changed, missing or new.

        A cut at the very end leaves a shorter, valid chain: compare the last hash with one noted elsewhere.
        """
        query, seq, prev_hash = select(events).order_by(events.c.seq), 0, GENESIS
        with (
            self._database.read() as connection,
            connection.execution_options(yield_per=1000).execute(query) as rows,
        ):
            try:
                for row in rows:
                    event = record(Event, row)
                    _check_link(event, seq + 1, prev_hash)
                    seq, prev_hash = event.seq, event.hash
            except ValueError as error:  # also what cannot even be read: a detail that is no JSON, a broken time
                raise StoreError(
                    f"the event log of {self._database.name} was changed: event {seq + 1} is not what was written",
                    hint="Restore the database from a backup, and find out who can write to it.",
                ) from error


def _check_link(event: Event, seq: int, prev_hash: str) -> None:
    if (event.seq, event.prev_hash, event.hash) != (seq, prev_hash, event.expected_hash()):
        raise ValueError(f"event {event.seq} breaks the chain")
