"""Opening a database: blank, old, newer, foreign, shared, unreachable."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from fedplat.errors import ConflictError, StoreError
from fedplat_server.store import open_store
from fedplat_server.store.migrations import migrate
from fedplat_server.store.session import Database
from fedplat_server.store.tables import metadata
from tests.support.postgres import PrivatePostgres


@contextmanager
def writing(url: str) -> Iterator[Connection]:
    database = Database(url)
    try:
        with database.write() as connection:
            yield connection
    finally:
        database.close()


def test_a_blank_database_gets_exactly_the_tables_of_the_code(database_url: str) -> None:
    open_store(database_url).close()
    open_store(database_url).close()
    with writing(database_url) as connection:
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_an_old_database_keeps_its_rows(database_url: str) -> None:
    with writing(database_url) as connection:
        migrate(connection, "old", target="0001")
        columns = "INSERT INTO events (seq, at, actor, kind, detail, prev_hash, hash)"
        connection.execute(text(f"{columns} VALUES (1, '2026-01-01 00:00:00', 'a', 'b', '{{}}', 'c', 'd')"))
    store = open_store(database_url)
    assert [event.actor for event in store.events.list()] == ["a"]
    store.close()
    with pytest.raises(ConflictError, match="append-only"), writing(database_url) as connection:
        connection.execute(text("DELETE FROM events"))


def test_a_failed_migration_leaves_nothing(database_url: str) -> None:
    def fail() -> None:
        with writing(database_url) as connection:
            migrate(connection, "half", target="0001")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with writing(database_url) as connection:
        assert inspect(connection).get_table_names() == []


def test_a_newer_database_is_refused_and_left_alone(database_url: str) -> None:
    open_store(database_url).close()
    with writing(database_url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="of another version \\(9999\\)") as error:
        open_store(database_url)
    assert "newer" in error.value.hint
    with writing(database_url) as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"


def test_the_database_of_another_program_is_refused(database_url: str) -> None:
    with writing(database_url) as connection:
        connection.execute(text("CREATE TABLE patients (id INTEGER)"))
    with pytest.raises(StoreError, match="not fedplat's"):
        open_store(database_url)
    with writing(database_url) as connection:
        assert inspect(connection).get_table_names() == ["patients"]


def test_many_first_starts_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: open_store(database_url), range(8)))
    for number, store in enumerate(stores, start=1):
        assert store.events.append(kind="server.started", actor="server").seq == number
        store.close()


def test_two_databases_can_be_opened_at_once(tmp_path: Path, postgres_url: str) -> None:
    urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(6)] + [postgres_url]
    with ThreadPoolExecutor(len(urls)) as pool:
        stores = list(pool.map(open_store, urls))
    for store in stores:
        assert store.events.append(kind="server.started", actor="server").seq == 1
        store.close()


def test_the_sqlite_file_is_private_and_durable(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = open_store(f"sqlite:///{tmp_path}/fedplat.db")
        store.events.append(kind="server.started", actor="server")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert modes == {"fedplat.db": 0o600, "fedplat.db-wal": 0o600, "fedplat.db-shm": 0o600}
    database = Database(f"sqlite:///{tmp_path}/fedplat.db")
    with database.read() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = [connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() for pragma in pragmas]
    assert found == ["wal", 2, 1, 10_000]
    database.close()
    store.close()


def test_a_database_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=re.escape("postgresql://ann@127.0.0.1:1/fed ")) as error:
        open_store("postgresql://ann:s3cret-word@127.0.0.1:1/fed")
    assert "refused" in error.value.message
    assert "running and reachable" in error.value.hint
    assert "s3cret-word" not in str(error.value)
    with pytest.raises(StoreError, match=re.escape(f"{tmp_path}/missing/fedplat.db")):
        open_store(f"sqlite:///{tmp_path}/missing/fedplat.db")


def test_a_wrong_password_is_not_shown(postgres: PrivatePostgres) -> None:
    url = postgres.url("postgres").replace(postgres.password, "s3cret-word")
    with pytest.raises(StoreError, match="password authentication failed") as error:
        open_store(url)
    assert "s3cret-word" not in str(error.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "fedplat.db"
    path.write_text("patient,age\n" * 200)
    with pytest.raises(StoreError, match="not a database"):
        open_store(f"sqlite:///{path}")
    assert path.read_text().startswith("patient,age")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense s3cret", "not understood"),
        ("postgresql://u:s3cret@host:port/db", "not understood"),
        ("mysql://u:s3cret@host/db", "does not work on mysql"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_urls_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as error:
        open_store(url)
    assert "s3cret" not in str(error.value)
    assert "postgresql://" in error.value.hint


def test_postgresql_comes_back_after_an_outage(postgres: PrivatePostgres, postgres_url: str) -> None:
    store = open_store(postgres_url)
    store.events.append(kind="before", actor="server")
    postgres.stop()
    try:
        with pytest.raises(StoreError, match="cannot be used"):
            store.events.append(kind="during", actor="server")
    finally:
        postgres.start()
    store.events.append(kind="after", actor="server")
    postgres.stop()
    postgres.start()
    store.events.append(kind="after a restart that nobody noticed", actor="server")
    assert len(store.events.list()) == 3
    store.close()


def test_foreign_keys_hold_and_values_are_not_shown(database_url: str) -> None:
    store = open_store(database_url)
    with pytest.raises(ConflictError, match="refused a row") as error:
        store.runs.create(
            run_id="run-1",
            name="heart",
            spec={"word": "s3cret"},
            spec_hash="5" * 64,
            rounds_planned=1,
            parent_id="run-0",
        )
    assert "s3cret" not in f"{error.value} {error.value.__cause__}"
    assert "run-0" not in str(error.value)
    assert store.runs.list() == []
    store.close()


def test_a_reader_does_not_wait_for_a_writer(database_url: str) -> None:
    store = open_store(database_url)
    with writing(database_url):
        assert store.events.list() == []
    store.close()


def test_a_locked_sqlite_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedplat_server.store.session.LOCK_TIMEOUT_S", 0.05)
    path = tmp_path / "fedplat.db"
    store = open_store(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.events.append(kind="late", actor="server")
    other.execute("ROLLBACK")
    store.events.append(kind="later", actor="server")
    other.close()
    store.close()
