"""The event log: append-only, chained, verifiable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from fedplat.errors import ConflictError, StoreError
from fedplat_server.store import Store, open_store
from fedplat_server.store.session import Database

# What somebody with the file, or with the owner's password, can do.
UNLOCK = {
    "sqlite": "DROP TRIGGER events_no_update; DROP TRIGGER events_no_delete; DROP TRIGGER events_next",
    "postgresql": "ALTER TABLE events DISABLE TRIGGER ALL",
}


@pytest.fixture
def tamper(database_url: str) -> Iterator[Callable[[str], None]]:
    database = Database(database_url)

    def tamper(statement: str) -> None:
        with database.write() as connection:
            for step in [*UNLOCK[connection.dialect.name].split(";"), statement]:
                connection.execute(text(step))

    yield tamper
    database.close()


def write_some(store: Store, count: int = 5) -> None:
    for number in range(count):
        store.events.append(
            kind="test.note", actor="ann", run_id=f"run-{number % 2}", detail={"n": number, "x": 0.1 * number}
        )


def test_events_come_back_as_written(store: Store) -> None:
    before = datetime.now(UTC)
    written = store.events.append(
        kind="run.created", actor="ann", run_id="r", silo_name="s", detail={"b": [1, float("nan")], "a": "é"}
    )
    assert store.events.list() == [written]
    assert written.detail == {"a": "é", "b": [1, None]}
    assert before <= written.at <= datetime.now(UTC)
    assert written.at.tzinfo is UTC


def test_lists_page_and_filter(store: Store) -> None:
    write_some(store)
    assert [event.seq for event in store.events.list(after=2, limit=2)] == [3, 4]
    assert [event.seq for event in store.events.list(run_id="run-1")] == [2, 4]
    assert store.events.list(after=5) == []


def test_the_chain_can_be_recomputed_by_others(store: Store) -> None:
    """An auditor needs no code of ours: this is the recipe of docs/schema.md."""
    write_some(store)
    prev_hash = "0" * 64
    for event in store.events.list():
        at = event.at.isoformat(timespec="microseconds")
        fields = [event.seq, at, event.actor, event.kind, event.run_id, event.silo_name, event.detail, prev_hash]
        line = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        prev_hash = hashlib.sha256(line.encode()).hexdigest()
        assert event.hash == prev_hash
    store.events.verify()


def test_the_database_itself_refuses_changes(store: Store, database_url: str) -> None:
    write_some(store)
    before = store.events.list()
    special = {"sqlite": "INSERT OR REPLACE INTO events SELECT * FROM events", "postgresql": "TRUNCATE events"}
    database = Database(database_url)
    for statement in (
        "UPDATE events SET actor = 'eve' WHERE seq = 1",
        "DELETE FROM events WHERE seq = 2",
        "INSERT INTO events SELECT 9, at, actor, kind, run_id, silo_name, detail, prev_hash, hash FROM events",
        "INSERT INTO events SELECT * FROM events WHERE seq = 1",
        special[database.engine.dialect.name],
    ):
        with pytest.raises(ConflictError, match="append-only"), database.write() as connection:
            connection.execute(text(statement))
    database.close()
    assert store.events.list() == before
    store.events.verify()


@pytest.mark.parametrize(
    ("statement", "seq"),
    [
        ("UPDATE events SET actor = 'eve' WHERE seq = 3", 3),
        ("UPDATE events SET detail = '{}' WHERE seq = 4", 4),
        ("UPDATE events SET detail = 'torn {' WHERE seq = 4", 4),
        ("UPDATE events SET silo_name = 'hospital-a' WHERE seq = 1", 1),
        ("UPDATE events SET at = '2026-01-01 00:00:00+00:00' WHERE seq = 2", 2),
        ("UPDATE events SET hash = prev_hash WHERE seq = 5", 5),
        ("DELETE FROM events WHERE seq = 3", 3),
        ("DELETE FROM events WHERE seq = 1", 1),
        ("UPDATE events SET seq = 9 WHERE seq = 5", 5),
    ],
)
def test_verify_names_the_first_event_that_was_touched(store: Store, tamper, statement: str, seq: int) -> None:
    write_some(store)
    tamper(statement)
    with pytest.raises(StoreError, match=f"event {seq} is not what was written"):
        store.events.verify()


def test_an_event_put_in_with_a_good_hash_of_its_own_breaks_the_next(store: Store, tamper) -> None:
    write_some(store)
    third = store.events.list()[2]
    fields = [3, third.at.isoformat(timespec="microseconds"), "eve", third.kind, third.run_id, None]
    line = json.dumps([*fields, third.detail, third.prev_hash], sort_keys=True, separators=(",", ":"))
    forged = hashlib.sha256(line.encode()).hexdigest()
    tamper(f"UPDATE events SET actor = 'eve', hash = '{forged}' WHERE seq = 3")
    with pytest.raises(StoreError, match="event 4"):
        store.events.verify()


def test_many_writers_make_one_chain(store: Store, database_url: str) -> None:
    other = open_store(database_url)

    def write(number: int) -> None:
        (store, other)[number % 2].events.append(kind="test.note", actor=f"thread-{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(80)))
    assert sorted(event.seq for event in store.events.list()) == list(range(1, 81))
    store.events.verify()
    other.close()
