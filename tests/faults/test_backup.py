"""A backup is of one moment whatever goes on meanwhile, and becomes a server again or nothing at all."""

from __future__ import annotations

import json
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedplat import durable
from fedplat.errors import ConflictError, HomeError, NotFoundError, StoreError
from fedplat.home import ServerHome
from fedplat.identity import ensure_authority, ensure_signing_key, ensure_tls
from fedplat.params import Group, Layout, Parameter
from fedplat_server.backup import BackupError, backup_server, read_backup, restore_server
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.commands_backup import backup, restore
from fedplat_server.settings import Settings
from fedplat_server.store import RunSiloState, Store, open_store
from fedplat_server.transitions import RunState, SiloRoundState
from tests.support.federation import add_constant, federation, wait_until
from tests.support.postgres import PrivatePostgres
from tests.support.silos import enrol_silos

SILOS = ("hospital-a", "hospital-b")
SPEC_HASH = "5" * 64
LAYOUT = Layout((Parameter("w", (5000,), "float32"),), (Group.SHARED,))


class Server:
    """The state of a server on disk, without its process."""

    def __init__(self, root: Path, url: str = "") -> None:
        self.home = ServerHome(root)
        self.home.create()
        self.settings = Settings.remembered(self.home, names=("localhost",), database=url)
        self.settings.remember(self.home)
        ensure_authority(self.home)
        ensure_tls(self.home, self.settings.names)
        ensure_signing_key(self.home)
        self.store = open_store(self.settings.database_url(self.home))

    def enrol(self) -> None:
        enrol_silos(self.store, *SILOS)
        expires_at = datetime.now(UTC) + timedelta(hours=24)
        self.store.silos.invite(name="hospital-c", secret_hash="c" * 64, expires_at=expires_at)

    def submit(self, run_id: str, parent_id: str | None = None) -> None:
        runs = self.store.runs
        runs.create(run_id=run_id, name="x", spec={}, spec_hash=SPEC_HASH, rounds_planned=9, parent_id=parent_id)
        for silo in SILOS:
            runs.join(run_id=run_id, silo_name=silo, state=RunSiloState.ACCEPTED)
        runs.set_state(run_id=run_id, state=RunState.RUNNING)

    def round(self, run_id: str, number: int) -> None:
        """One round as the coordinator does it: checkpoint, transaction, and only the newest checkpoint stays."""
        rounds, place = self.store.rounds, {"run_id": run_id, "number": number}
        checkpoints = Checkpoints(self.home.checkpoints(run_id), SPEC_HASH)
        rounds.open(**place, step=number, roster=SILOS)
        for silo in SILOS:
            rounds.silo_round(**place, silo_name=silo, state=SiloRoundState.UPLOADED)
        rounds.fix_cohort(**place, cohort=SILOS)
        saved = checkpoints.save(number, np.full(LAYOUT.size, number, np.float32), LAYOUT)
        rounds.commit(**place, cohort=SILOS, weights_path=str(saved.path), weights_sha256=saved.sha256)
        checkpoints.prune(1)


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """With two finished runs (a child before its parent in the order of ids), one that goes on and an open invite."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    server = Server(tmp_path / "old", url)
    server.enrol()
    for run_id, parent_id in (("b-parent", None), ("a-child", "b-parent"), ("live", "a-child")):
        server.submit(run_id, parent_id)
        server.round(run_id, 1)
        if run_id != "live":
            server.store.runs.set_state(run_id=run_id, state=RunState.FINISHING)
            server.store.runs.set_state(run_id=run_id, state=RunState.FINISHED)
    yield server
    server.store.close()


@pytest.fixture
def empty_database(postgres: PrivatePostgres, request: pytest.FixtureRequest) -> str:
    name = f"restored_{abs(hash(request.node.nodeid))}"
    return postgres.create_database(name)


@contextmanager
def restored(source: Path, root: Path, url: str | None = None) -> Iterator[Store]:
    home = ServerHome(root)
    restore_server(source, home, url)
    settings = Settings.model_validate_json((home.path / "server.json").read_bytes())
    assert settings.database == (url or "")
    store = open_store(settings.database_url(home))
    yield store
    store.close()


def target_of(server: Server, request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("empty_database") if server.settings.database else None


def modes(folder: Path) -> set[tuple[bool, int]]:
    return {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in (folder, *folder.rglob("*"))}


def test_a_restored_server_is_the_old_one(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server.store.rounds.open(run_id="live", number=2, step=2, roster=SILOS)
    report = backup_server(server.home, tmp_path / "backup")
    assert report.problems == ()
    assert modes(report.folder) == {(True, 0o700), (False, 0o600)}
    old = server.store.events.list()
    with restored(report.folder, tmp_path / "new", target_of(server, request)) as store:
        home = ServerHome(tmp_path / "new")
        assert modes(home.path) == {(True, 0o700), (False, 0o600)}
        assert store.silos.list() == server.store.silos.list()
        assert [i.cancelled_at is not None for i in store.silos.invites()] == [False, False, True]
        for name in ("ca/ca.pem", "tls/tls.pem", "keys/signing.pem"):
            assert (home.path / name).read_bytes() == (server.home.path / name).read_bytes()
        for run_id in ("b-parent", "a-child"):
            run, before = store.runs.get(run_id), server.store.runs.get(run_id)
            assert vars(run) | {"weights_path": before.weights_path} == vars(before)
            assert store.rounds.list(run_id) == server.store.rounds.list(run_id)
            assert store.rounds.silo_rounds(run_id) == server.store.rounds.silo_rounds(run_id)
        for run in store.runs.list():
            path = Path(str(run.weights_path))
            assert path.parent == home.checkpoints(run.id)
            checkpoint = Checkpoints(path.parent, SPEC_HASH).load(1)
            assert checkpoint.manifest.sha256 == run.weights_sha256
        live = store.runs.get("live")
        assert (live.state, live.reason_code, live.rounds_committed) == (RunState.STOPPED, "restored", 1)
        assert "fedplat run resume live" in str(live.reason)
        store.events.verify()
        events = store.events.list()
        assert events[: len(old)] == old
        assert [e.kind for e in events[len(old) :]] == ["run.state", "server.restored"]
        mark = json.loads((home.path / "restored.json").read_text())
        assert events[-1].detail["restore_id"] == mark["restore_id"]
        # The restored database counts on: ids, events, rounds.
        store.silos.invite(name="hospital-c", secret_hash="d" * 64, expires_at=datetime.now(UTC))


def test_a_backup_of_postgresql_asks_for_a_database(postgres_url: str, tmp_path: Path) -> None:
    server = Server(tmp_path / "old", postgres_url)
    backup_server(server.home, tmp_path / "backup")
    server.store.close()
    with pytest.raises(ConflictError, match="used PostgreSQL") as error:
        restore_server(tmp_path / "backup", ServerHome(tmp_path / "new"))
    assert "--database postgresql://" in error.value.hint


def test_a_backup_while_runs_go_on(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    done = threading.Event()

    def go_on(run_id: str) -> int:
        number = 1
        while not done.is_set():
            number += 1
            server.round(run_id, number)
        return number

    server.submit("second")
    server.round("second", 1)
    with ThreadPoolExecutor(2) as pool:
        lives = [pool.submit(go_on, run_id) for run_id in ("live", "second")]
        try:
            reports = [backup_server(server.home, tmp_path / f"backup-{n}") for n in range(4)]
        finally:
            done.set()
        assert min(life.result(30) for life in lives) > 2
    for report in reports:
        assert report.problems == ()
    events = [report.manifest.last_event for report in reports]
    assert events == sorted(set(events))
    # The last one is restored: its moment is one of the old server's, and all of it fits together.
    last = reports[-1].manifest
    with restored(reports[-1].folder, tmp_path / "new", target_of(server, request)) as store:
        store.events.verify()
        assert store.events.list(after=last.last_event - 1)[0].hash == last.last_hash
        for run in store.runs.list():
            committed = [r for r in store.rounds.list(run.id) if r.weights_sha256]
            assert len(committed) == run.rounds_committed
            found = Checkpoints(ServerHome(tmp_path / "new").checkpoints(run.id), SPEC_HASH).load(run.rounds_committed)
            assert found.manifest.sha256 == run.weights_sha256 == committed[-1].weights_sha256
            assert np.all(found.weights.vector() == run.rounds_committed)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rename_out(path: Path) -> None:
    text = path.read_text().replace('"server.json"', '"../server.json"')
    path.write_text(text)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit in the database": lambda b: flip(b / "fedplat.db"),
    "a bit in a checkpoint": lambda b: flip(next(b.glob("runs/live/checkpoints/*.safetensors"))),
    "a bit in the manifest": lambda b: flip(b / "manifest.json"),
    "another time": lambda b: (b / "manifest.json").write_text(
        (b / "manifest.json").read_text().replace('"made_at": "20', '"made_at": "21')
    ),
    "a name that leads out": lambda b: rename_out(b / "manifest.json"),
    "a key that is missing": lambda b: (b / "keys" / "signing.pem").unlink(),
    "a checkpoint cut short": lambda b: next(b.glob("runs/live/checkpoints/*.safetensors")).write_bytes(b"short"),
    "not finished": lambda b: (b / "manifest.json").unlink(),
    "not there": shutil.rmtree,
}


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_a_damaged_backup_is_refused_before_anything_is_written(server: Server, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    backup_server(server.home, whole)
    for name, damage in DAMAGE.items():
        broken = tmp_path / "broken"
        shutil.copytree(whole, broken)
        damage(broken)
        with pytest.raises(BackupError) as error:
            restore_server(broken, ServerHome(tmp_path / "new"))
        assert not (tmp_path / "new").exists(), name
        assert error.value.hint, name
        shutil.rmtree(broken, ignore_errors=True)
    assert read_backup(whole).last_event == len(server.store.events.list())


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_what_the_server_had_lost_before_is_said_and_the_rest_is_saved(server: Server, tmp_path: Path) -> None:
    shutil.rmtree(server.home.checkpoints("b-parent"))
    flip(next(server.home.checkpoints("live").glob("*.safetensors")))
    report = backup_server(server.home, tmp_path / "backup")
    lost, damaged = report.problems
    assert "b-parent has lost its checkpoint of round 1" in lost
    assert "round 1 of run live is no good" in damaged
    assert "runs/live/checkpoints/round-0000001.safetensors" not in report.manifest.files
    with restored(report.folder, tmp_path / "new") as store:
        assert len(store.runs.list()) == 3


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_a_backup_needs_an_empty_folder_and_a_server(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    target.mkdir()
    (target / "mine").write_text("precious")
    with pytest.raises(ConflictError, match="not empty"):
        backup_server(server.home, target)
    assert (target / "mine").read_text() == "precious"
    (target / "mine").unlink()
    nobody = ServerHome(tmp_path / "nobody")
    nobody.create()
    with pytest.raises(NotFoundError, match="no server"):
        backup_server(nobody, target)
    server.store.close()
    server.home.db.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError):
        backup_server(server.home, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_all_or_nothing(server: Server, tmp_path: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = tmp_path / "backup", tmp_path / "new"
    backup_server(server.home, source)
    with pytest.raises(ConflictError, match="not empty"):
        restore_server(source, server.home)
    fails_at = 0

    class Failing(durable.Filesystem):
        def __init__(self) -> None:
            self.renames = 0

        def rename(self, old: Path, new: Path) -> None:
            self.renames += 1
            if self.renames == fails_at:
                raise OSError(28, "No space left on device")
            super().rename(old, new)

    number = 0
    while True:
        number += 1
        fails_at, failing = number, Failing()
        for module in ("fedplat.durable", "fedplat_server.backup.restore"):
            monkeypatch.setattr(f"{module}.filesystem", failing)
        try:
            restore_server(source, ServerHome(root), empty_database)
        except HomeError:
            assert list(root.iterdir()) == []
            continue
        break
    monkeypatch.undo()
    assert number > 8  # every file, and the home itself
    assert not (root / "server" / "fedplat.db").exists()
    store = open_store(empty_database)
    store.events.verify()
    store.close()
    with pytest.raises(ConflictError, match=r"database .* is not empty"):
        restore_server(source, ServerHome(tmp_path / "third"), empty_database)
    assert list((tmp_path / "third").iterdir()) == []


def test_silos_find_the_restored_server_and_a_child_run_ends_the_work(tmp_path: Path) -> None:
    invoke = CliRunner().invoke
    with federation() as fed:
        for silo in SILOS:
            fed.join(silo, policy='allowed_tasks = ["add_constant"]')
        run = fed.submit(add_constant(rounds=6, seconds=0.4, minimum=2, silos=SILOS))
        wait_until(lambda: fed.snapshot(run)["rounds_committed"] >= 1, 30, fed.all_logs)
        made = invoke(backup, [str(tmp_path / "backup"), "--home", fed.env["FEDPLAT_HOME"]], catch_exceptions=False)
        assert "keep it where you would keep a password" in made.output
        moment = read_backup(tmp_path / "backup").last_event
        wait_until(lambda: fed.snapshot(run)["rounds_committed"] >= 3, 30, fed.all_logs)
        fed.kill("server")
        shutil.rmtree(fed.env["FEDPLAT_HOME"])
        done = invoke(restore, [str(tmp_path / "backup"), "--home", fed.env["FEDPLAT_HOME"]], catch_exceptions=False)
        assert f"closed {run}" in done.output
        fed.start_server()
        fed.wait_connected(*SILOS)
        old = fed.snapshot(run)
        assert (old["state"], old["reason_code"]) == ("stopped", "restored")
        assert fed.ask("/events?after=0")[moment]["actor"] == "restore"
        child = fed.json("run", "resume", run)
        view = fed.wait_for(child["id"])
        assert view["parent_id"] == run
        assert view["rounds_committed"] == 6
