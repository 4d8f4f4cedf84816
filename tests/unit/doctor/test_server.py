"""A server's home, its port and its database, broken in one place at a time."""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedplat.doctor import Level
from fedplat.durable import write_atomic
from fedplat.home import ServerHome
from fedplat.identity import ensure_authority, issue_tls, load_certified
from fedplat.identity.keys import private_pem
from fedplat_server.settings import Settings
from fedplat_server.store import open_store
from tests.support.federation import free_port
from tests.unit.doctor.scene import expect, line, served, server

CHECKS = (
    "home",
    "files",
    "disk space",
    "disk speed",
    "settings",
    "dns",
    "process",
    "port",
    "ca",
    "signing key",
    "certificate",
    "database",
    "integrity",
    "event log",
    "clock",
)


@pytest.fixture
def home(short_path: Path) -> ServerHome:
    return served(short_path, free_port())


def test_all_is_well(home: ServerHome) -> None:
    subject = server(home)
    assert tuple(check.name for check in subject.checks) == CHECKS
    for check in CHECKS:
        expect(line(subject, check), Level.OK)


def test_no_server_was_started(tmp_path: Path) -> None:
    found = server(ServerHome(tmp_path))
    expect(line(found, "home"), Level.FAILED, "no server was ever started", "fedplat server start")
    expect(line(found, "database"), Level.SKIPPED)
    assert list(tmp_path.iterdir()) == [], "to look makes nothing"


def test_a_home_with_a_long_name(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / ("x" * 120))
    os.makedirs(home.path, 0o700)
    (home.path / "server.json").touch()
    expect(line(server(home), "home"), Level.FAILED, "too long for a Unix socket", "FEDPLAT_HOME")


@pytest.mark.parametrize("name", ["ca/ca.pem", "keys/signing.pem", "fedplat.db", "server.json", "runs"])
def test_a_secret_that_is_open(home: ServerHome, name: str) -> None:
    (home.path / name).chmod(0o755)
    expect(line(server(home), "files"), Level.FAILED, f"open to other users: {name}", "chmod go= ")


def test_settings_that_are_damaged(home: ServerHome) -> None:
    (home.path / "server.json").write_text('{"port": 0}')
    expect(line(server(home), "settings"), Level.FAILED, "port", "Mend the file")


def test_a_name_that_nobody_knows(home: ServerHome) -> None:
    Settings.remembered(home, names=("fed.invalid", "localhost")).remember(home)
    expect(line(server(home), "dns"), Level.WARNING, "fed.invalid", "--name HOST")


def test_a_port_that_another_program_holds(home: ServerHome) -> None:
    port = Settings.remembered(home).port
    with closing(socket.create_server(("127.0.0.1", port))):
        holder = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
        expect(line(server(home), "port"), Level.FAILED, f":{port} cannot be used", holder, "--port N")


def test_a_process_that_holds_the_home_and_does_not_answer(home: ServerHome) -> None:
    with home.lock():
        found = line(server(home), "process")
    expect(found, Level.FAILED, f"in use by another process (pid {os.getpid()}), and does not answer")


def test_a_signing_key_that_is_gone(home: ServerHome) -> None:
    (home.keys / "signing.pem").unlink()
    expect(line(server(home), "signing key"), Level.FAILED, "signing.pem does not exist", "backup")
    assert not (home.keys / "signing.pem").exists(), "to look makes nothing"


def test_a_ca_that_is_damaged(home: ServerHome) -> None:
    (home.ca / "ca.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    expect(line(server(home), "ca"), Level.FAILED, "ca.pem holds no private key", "backup")
    expect(line(server(home), "certificate"), Level.SKIPPED, "'ca' has failed")


@pytest.mark.parametrize(
    ("age_days", "level", "words"), [(0, Level.OK, ""), (815, Level.WARNING, "good until"), (900, Level.FAILED, "here")]
)
def test_a_certificate_that_ends(short_path: Path, age_days: int, level: Level, words: str) -> None:
    begin = datetime.now(UTC) - timedelta(days=age_days)
    old = ServerHome(short_path)
    old.create()
    authority = ensure_authority(old, begin)
    home = served(short_path, free_port())
    shown = issue_tls(authority, ("localhost",), begin)
    write_atomic(home.tls / "tls.pem", private_pem(shown.key) + shown.certificate_pem.encode())
    expect(line(server(home), "certificate"), level, words)


def test_a_certificate_of_another_ca_and_of_another_name(home: ServerHome, tmp_path: Path) -> None:
    Settings.remembered(home, names=("fed.example.org",)).remember(home)
    expect(line(server(home), "certificate"), Level.FAILED, "other names than its settings", "Start the server anew")
    other = ServerHome(tmp_path)
    other.create()
    shown = issue_tls(ensure_authority(other), ("localhost",))
    write_atomic(home.tls / "tls.pem", private_pem(shown.key) + shown.certificate_pem.encode())
    assert load_certified(home.tls / "tls.pem")
    expect(line(server(home), "certificate"), Level.FAILED, "not by its CA")


def test_a_database_that_is_gone(home: ServerHome) -> None:
    home.db.unlink()
    expect(line(server(home), "database"), Level.FAILED, "is gone", "fedplat server restore")
    assert not home.db.exists(), "to look makes nothing"


def test_a_database_that_is_away(home: ServerHome) -> None:
    url = f"postgresql://fedplat:s3cret@127.0.0.1:{free_port()}/fedplat"
    Settings.remembered(home, database=url).remember(home)
    found = line(server(home), "database")
    expect(found, Level.FAILED, "cannot be used", "Check that it is running")
    assert "s3cret" not in f"{found}"


@pytest.mark.parametrize(("version", "words"), [("9999", "of another version (9999)"), ("0001", "of an older fedplat")])
def test_a_database_of_another_version(home: ServerHome, version: str, words: str) -> None:
    write(home, "UPDATE alembic_version SET version_num = ?", version)
    expect(line(server(home), "database"), Level.FAILED, words)


def test_a_database_that_is_locked(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedplat_server.store.session.LOCK_TIMEOUT_S", 0.1)
    with closing(sqlite3.connect(home.db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        expect(line(server(home), "database"), Level.FAILED, "locked")


@pytest.mark.parametrize(
    ("where", "at", "garbage", "words"),
    [("events", 0, b"\xff" * 512, "malformed"), ("ix_events_run_id", 3, b"\0\0", "the database is damaged")],
    ids=["page", "index"],
)
def test_a_database_that_is_damaged(home: ServerHome, where: str, at: int, garbage: bytes, words: str) -> None:
    """A page that is none any more, and an index that says it is empty."""
    with closing(open_store(f"sqlite:///{home.db}")) as store:
        store.events.append(kind="server.started", actor="server")
    with home.db.open("r+b") as file:
        file.seek(sqlite_page(home, where) + at)
        file.write(garbage)
    found = [line(server(home), check) for check in ("database", "integrity")]
    expect(next(each for each in found if each.level is Level.FAILED), Level.FAILED, words)


def test_rows_that_belong_to_nothing(home: ServerHome) -> None:
    write(
        home, "INSERT INTO rounds (run_id, number, step, state, cohort, started_at) VALUES ('x', 1, 1, 'open', '[]', 0)"
    )
    expect(line(server(home), "integrity"), Level.FAILED, "belong to nothing", "rounds")


def test_an_event_log_that_was_changed(home: ServerHome) -> None:
    with closing(open_store(f"sqlite:///{home.db}")) as store:
        store.events.append(kind="server.started", actor="server")
        store.events.append(kind="server.started", actor="server")
    expect(line(server(home), "event log"), Level.OK, "2 events")
    write(home, "UPDATE events SET actor = ? WHERE seq = 1", "nobody")
    expect(line(server(home), "event log"), Level.FAILED, "event 1 is not what was written", "backup")


def test_a_clock_that_was_turned_back(home: ServerHome) -> None:
    with closing(open_store(f"sqlite:///{home.db}")) as store:
        store.events.append(kind="server.started", actor="server")
    write(home, "UPDATE events SET at = replace(at, substr(at, 1, 4), '2099')")
    expect(line(server(home), "clock"), Level.FAILED, "the last event was at 2099", "turned back", "set-ntp")


def write(home: ServerHome, statement: str, *values: object) -> None:
    """Behind the server's back: whatever protects the table is taken away first."""
    with closing(sqlite3.connect(home.db)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute(statement, values)
        database.commit()


def sqlite_page(home: ServerHome, name: str) -> int:
    """Where the first page of a table or an index is in the file."""
    with closing(sqlite3.connect(home.db)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = database.execute("PRAGMA page_size").fetchone()
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    return int(size) * (int(page) - 1)
