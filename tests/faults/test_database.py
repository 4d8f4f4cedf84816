"""The database goes away in the middle of the work: stopped, locked, full, silent. Then it is back, and nothing is lost
or done twice."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fedplat.errors import FedplatError, StoreUnavailableError
from fedplat_server.store import RunSiloState, Store, open_store
from fedplat_server.store.session import Database
from fedplat_server.transitions import RoundState, RunState, SiloRoundState
from tests.support.federation import add_constant, federation, wait_until
from tests.support.postgres import PrivatePostgres
from tests.support.silos import enrol_silos

Answer = TypeVar("Answer")
SILOS = ("hospital-a", "hospital-b")
MOST_S = 12.0
OUTAGE_S = 20.0


class Patient:
    """Does what a run does: after an outage, wait until the database is back, and do it again."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.outages = 0
        self.longest_s = 0.0

    def do(self, call: Callable[..., Answer], /, **arguments: Any) -> Answer:
        while True:
            begun = time.monotonic()
            try:
                return call(**arguments)
            except StoreUnavailableError:
                self.outages += 1
                self.longest_s = max(self.longest_s, time.monotonic() - begun)
                assert self.store.wait_until_back(threading.Event(), 60)

    def live(self, run_id: str, enough: Callable[[], bool]) -> int:
        """One run of many rounds; returns how many."""
        runs, rounds = self.store.runs, self.store.rounds
        spec: dict[str, object] = {"rounds": 10_000}
        create = {"name": run_id, "spec": spec, "spec_hash": "5" * 64, "rounds_planned": 10_000}
        self.do(runs.create, run_id=run_id, **create)
        for silo in SILOS:
            self.do(runs.join, run_id=run_id, silo_name=silo, state=RunSiloState.ACCEPTED)
        self.do(runs.set_state, run_id=run_id, state=RunState.RUNNING)
        number = 0
        while not enough():
            number += 1
            place = {"run_id": run_id, "number": number}
            self.do(rounds.open, **place, step=number, roster=SILOS)
            for silo in SILOS:
                self.do(rounds.silo_round, **place, silo_name=silo, state=SiloRoundState.UPLOADED)
            self.do(rounds.fix_cohort, **place, cohort=SILOS)
            weights = {"weights_path": "w", "weights_sha256": f"{number:064x}"}
            self.do(rounds.commit, **place, cohort=SILOS, **weights)
        return number


def check(store: Store, run_id: str, num_rounds: int) -> None:
    """Every round once, in order, and an event log without a gap."""
    rounds = store.rounds.list(run_id)
    assert [(r.number, r.step, r.state) for r in rounds] == [
        (n, n, RoundState.COMMITTED) for n in range(1, num_rounds + 1)
    ]
    events = store.events.list(run_id=run_id, limit=1_000_000)
    assert [e.detail["round"] for e in events if e.kind == "round.committed"] == list(range(1, num_rounds + 1))
    assert [e.detail["round"] for e in events if e.kind == "round.cohort"] == list(range(1, num_rounds + 1))
    assert [e.silo_name for e in events if e.kind == "run.silo"] == list(SILOS)


@contextmanager
def stopped(postgres: PrivatePostgres) -> Iterator[None]:
    postgres.stop()
    try:
        yield
    finally:
        postgres.start()


def test_postgresql_is_away_for_5_s_in_the_middle_of_three_runs(postgres: PrivatePostgres, postgres_url: str) -> None:
    store = open_store(postgres_url)
    enrol_silos(store, *SILOS)
    done = threading.Event()
    patients = [Patient(store) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        lives = [pool.submit(p.live, f"run-{i}", done.is_set) for i, p in enumerate(patients)]
        try:
            time.sleep(0.5)
            with stopped(postgres):
                time.sleep(5)
            wait_until(lambda: all(p.outages for p in patients) or any(life.done() for life in lives), 30)
            time.sleep(1)
        finally:
            done.set()
        lengths = [life.result(60) for life in lives]
    assert max(p.longest_s for p in patients) < MOST_S
    for number, length in enumerate(lengths):
        check(store, f"run-{number}", length)
    store.events.verify()
    store.close()


@pytest.mark.slow
def test_a_run_goes_on_when_postgresql_was_away_for_20_s(postgres: PrivatePostgres, postgres_url: str) -> None:
    with federation("--database", postgres_url) as fed:
        for silo in SILOS:
            fed.join(silo, policy='allowed_tasks = ["add_constant"]', wait=False)
        fed.wait_connected(*SILOS)
        run = fed.submit(add_constant(rounds=4, seconds=0.5, minimum=2, silos=SILOS))
        wait_until(lambda: fed.snapshot(run)["rounds_committed"] >= 2, 30, lambda: str(fed.live(run)) + fed.all_logs())
        with stopped(postgres):
            begun = time.monotonic()
            with pytest.raises(FedplatError, match="cannot be used"):
                fed.snapshot(run)
            assert time.monotonic() - begun < MOST_S
            time.sleep(begun + OUTAGE_S - time.monotonic())
        view = fed.wait_for(run)
        assert [r["state"] for r in view["rounds"]] == ["committed"] * 4
        assert view["evaluations"][-1]["round_number"] == 4


def silent_port() -> Iterator[int]:
    """A port that takes no more connections and refuses none: what a cut cable looks like."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(server.getsockname())
            waiting.append(one)
        yield int(server.getsockname()[1])
        for one in waiting:
            one.close()


silent = contextmanager(silent_port)


def test_a_server_that_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedplat_server.store.session.CONNECT_TIMEOUT_S", 2)
    with silent() as port:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="cannot be used"):
            open_store(f"postgresql://fedplat:word@127.0.0.1:{port}/fedplat")
        assert time.monotonic() - begun < 5


def test_a_locked_sqlite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedplat_server.store.session.LOCK_TIMEOUT_S", 0.1)
    path = tmp_path / "fedplat.db"
    store = open_store(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        store.events.append(kind="late", actor="server")
    assert store.events.list() == []  # readers do not wait
    assert not store.wait_until_back(threading.Event(), 0.5)
    stop = threading.Event()
    stop.set()
    assert not store.wait_until_back(stop, 60)
    unlock = threading.Timer(1.0, other.execute, ["ROLLBACK"])
    unlock.start()
    begun = time.monotonic()
    assert store.wait_until_back(threading.Event(), 60)
    assert 0.9 < time.monotonic() - begun < 10
    unlock.join()
    store.events.append(kind="later", actor="server")
    other.close()
    store.close()


FULL_DISK = """
import resource, sys, threading
from fedplat.errors import StoreUnavailableError
from fedplat_server.store import open_store

store = open_store(sys.argv[1])
written = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    while written < 10_000:
        store.events.append(kind="x", actor="server", detail={"words": "x" * 2000})
        written += 1
except StoreUnavailableError as error:
    print(error.message)
assert 0 < written < 10_000, written
assert len(store.events.list(limit=20_000)) == written
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert store.wait_until_back(threading.Event(), 30)
store.events.append(kind="after", actor="server")
store.events.verify()
assert len(store.events.list(limit=20_000)) == written + 1
store.close()
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """What a full disk and a quota come down to, without being root."""
    command = [sys.executable, "-c", FULL_DISK, f"sqlite:///{tmp_path}/fedplat.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "cannot be used" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB. Only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    store = open_store(f"sqlite:///{small_disk}/fedplat.db")
    store.events.append(kind="before", actor="server")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(3 << 20))
    with pytest.raises(StoreUnavailableError, match="full"):
        store.events.append(kind="during", actor="server", detail={"words": "x" * (2 << 20)})
    # What failed has made room in the log for a small write; that does not mean that the database is back.
    assert not store.wait_until_back(threading.Event(), 1)
    assert [event.kind for event in store.events.list()] == ["before"]
    filler.unlink()
    assert store.wait_until_back(threading.Event(), 30)
    store.events.append(kind="after", actor="server")
    store.events.verify()
    store.close()


def test_a_database_that_is_gone_for_good_is_given_up(tmp_path: Path) -> None:
    database = Database("postgresql://fedplat:word@127.0.0.1:1/fedplat")
    store = Store(database)
    begun = time.monotonic()
    assert not store.wait_until_back(threading.Event(), 1.0)
    assert 0.9 < time.monotonic() - begun < 5
    store.close()
