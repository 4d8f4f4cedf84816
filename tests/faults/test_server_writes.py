"""The server dies before each of its file writes and each of its transactions of two rounds, as by kill -9 or as by a
power cut, and goes on from what is left: the same weights, every round once, no file that no row owns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection

from fedplat import durable
from fedplat.identity import fingerprint, load_public, new_key, public_pem
from fedplat.params import Layout, Parameter, Vector
from fedplat.reasons import Reason
from fedplat.spec import RunSpec, parse_spec
from fedplat.wire.codec import Parcel
from fedplat.wire.messages import TrainReply, TrainRequest
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.driver import RunDriver
from fedplat_server.exchange import Given
from fedplat_server.registry import Member
from fedplat_server.rounds import RoundLost, RoundTask, RunContext, run_round
from fedplat_server.staging import Staging
from fedplat_server.store import Store, open_store
from fedplat_server.store.session import Database
from fedplat_server.strategies import make_strategy
from fedplat_server.transitions import RoundState, RunState, SiloRoundState
from fedplat_server.turns import Turns
from tests.support.crashes import Crash, CrashingFilesystem

SIZE = 5
ROUNDS = 2
SILOS = ("silo-a", "silo-b")
SPEC = f"""
name = "crash"
[task]
name = "add_constant"
[data]
name = "none"
[rounds]
count = {ROUNDS}
[strategy]
name = "fedadam"
[training]
steps = 1
"""


@dataclass
class Answering:
    """Silos that answer at once, always the same: what an honest silo's spool does."""

    number: int = 0
    step: int = 0
    open: list[str] = field(default_factory=list)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        return tuple(self.open)

    def ask(self, members: Sequence[Member], question: TrainRequest, _vector: Vector) -> None:
        self.number, self.step = question.round, question.step
        self.open = [m.name for m in members]

    def answers(self, _timeout_s: float) -> list[Given[TrainReply]]:
        silo = self.open.pop(0)
        update = np.full(SIZE, 0.1 * (1 + SILOS.index(silo)) * self.number, dtype=np.float32)
        reply = TrainReply(run="r-1", silo=silo, round=self.number, step=self.step, weight=1.0)
        return [Given(silo, Parcel(reply, update.tobytes()))]


@dataclass
class Everybody:
    """Nobody is ever away."""

    members: Sequence[Member]

    def lost(self, silo: str, reason: Reason) -> None:
        raise AssertionError(f"{silo}: {reason}")

    def present(self) -> Sequence[Member]:
        return self.members


class World:
    """What outlives the process: a folder and a database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: RunSpec = parse_spec(SPEC)
        self.layout = Layout.assign([Parameter("w", (SIZE,), "float32")], self.spec.model)
        self.url = f"sqlite:///{folder / 'fedplat.db'}"
        store = open_store(self.url)
        for name in SILOS:
            enrol(store, name)
        values = self.spec.model_dump(mode="json")
        store.runs.create(run_id="r-1", name="crash", spec=values, spec_hash=self.spec.hash, rounds_planned=ROUNDS)
        saved = self.checkpoints.save(0, np.zeros(SIZE, np.float32), self.layout)
        store.runs.set_layout(
            run_id="r-1", layout={"minimum": 2}, weights_path=str(saved.path), weights_sha256=saved.sha256
        )
        store.runs.set_state(run_id="r-1", state=RunState.RUNNING)
        store.close()

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", self.spec.hash)

    def live(self) -> str:
        """A process of the server, from its start until the rounds are done; returns the hash of the last weights."""
        store = open_store(self.url)
        try:
            return self._rounds(store)
        finally:
            store.close()

    def _rounds(self, store: Store) -> str:
        run = store.runs.get("r-1")
        parts = (store, make_strategy(self.spec, self.layout), self.checkpoints, Staging(self.folder / "staging"))
        context = RunContext("r-1", self.spec, self.layout, 2, *parts)
        context.checkpoints.discard_after(run.rounds_committed)
        start = context.checkpoints.load(run.rounds_committed)
        context.strategy.restore(start.strategy_state)
        weights = start.weights
        for number in range(run.rounds_committed + 1, ROUNDS + 1):
            weights = self._round(context, number, weights)
            context.checkpoints.prune(1)
        context.checkpoints.prune(1)
        context.staging.clear()
        return store.runs.get("r-1").weights_sha256 or ""

    def _round(self, context: RunContext, number: int, weights: Vector) -> Vector:
        rows = context.store.rounds.list("r-1")
        unfinished = [r for r in rows if r.number == number and r.state is not RoundState.ABANDONED]
        step = unfinished[0].step if unfinished else max((r.step for r in rows), default=0) + 1
        members = [Member(name, 1, "", new_key().public_key()) for name in SILOS]
        task = RoundTask(number, step, weights, SILOS)
        try:
            parts: Any = (Answering(), Everybody(members))
            return run_round(context, task, members, *parts, lambda *_: None).weights
        except RoundLost as lost:
            context.store.rounds.abandon(run_id="r-1", number=number, detail={"why": str(lost)})
            return self._round(context, number, weights)

    def files(self) -> set[str]:
        """Every file but the database's own."""
        return {p.name for p in self.folder.rglob("*") if p.is_file() and not p.name.startswith("fedplat.db")}


def enrol(store: Store, name: str) -> None:
    from datetime import UTC, datetime, timedelta

    pem = public_pem(new_key())
    expires = datetime.now(UTC) + timedelta(hours=1)
    store.silos.invite(name=name, secret_hash=f"{SILOS.index(name)}" * 64, expires_at=expires)
    store.silos.redeem(
        name=name,
        secret_hash=f"{SILOS.index(name)}" * 64,
        now=datetime.now(UTC),
        public_key_pem=pem,
        fingerprint=fingerprint(load_public(pem)),
        node_id=100 + SILOS.index(name),
    )


@contextmanager
def crash_before_commit(patch: pytest.MonkeyPatch, at: int) -> Iterator[list[int]]:
    """Die inside the `at`-th write transaction, before it commits."""
    seen = [0]
    real = Database.write

    @contextmanager
    def write(self: Database) -> Iterator[Connection]:
        with real(self) as connection:
            yield connection
            seen[0] += 1
            if seen[0] > at:
                raise Crash

    patch.setattr(Database, "write", write)
    yield seen


def undisturbed(folder: Path) -> tuple[str, set[str]]:
    world = World(folder)
    return world.live(), world.files()


@pytest.mark.parametrize("power_loss", [False, True])
def test_every_file_write_of_two_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power_loss: bool) -> None:
    (tmp_path / "reference").mkdir()
    expected = undisturbed(tmp_path / "reference")
    points = 0
    while True:
        (folder := tmp_path / f"w{points}").mkdir()
        world = World(folder)
        filesystem = CrashingFilesystem(points, power_loss=power_loss)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "filesystem", filesystem)
            try:
                world.live()
                break
            except Crash:
                pass
        assert (world.live(), world.files()) == expected, f"after a crash before step {filesystem.steps[-1]}"
        points += 1
    assert points > 40, "the points are enumerated, not guessed"


def test_every_transaction_of_two_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reference").mkdir()
    expected = undisturbed(tmp_path / "reference")
    points = 0
    while True:
        (folder := tmp_path / f"t{points}").mkdir()
        world = World(folder)
        with monkeypatch.context() as patch, crash_before_commit(patch, points):
            try:
                world.live()
                break
            except Crash:
                pass
        assert (world.live(), world.files()) == expected, f"after a crash in transaction {points}"
        points += 1
    assert points >= ROUNDS * 5


def test_a_lost_staged_update_begins_the_round_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cohort is fixed, the server dies, and a staged file is damaged on disk."""
    (tmp_path / "reference").mkdir()
    expected = undisturbed(tmp_path / "reference")
    (folder := tmp_path / "lost").mkdir()
    world = World(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda *_a, **_k: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            world.live()
    staged = next((folder / "staging").iterdir())
    staged.write_bytes(staged.read_bytes()[:-1] + b"?")
    assert (world.live(), world.files()) == expected
    store = open_store(world.url)
    assert [r.step for r in store.rounds.list("r-1")] == [2, 3]
    store.close()


def test_a_silo_that_failed_in_the_open_round_is_not_asked_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    store = open_store(world.url)
    store.rounds.open(run_id="r-1", number=1, step=1, roster=SILOS)
    store.rounds.silo_round(run_id="r-1", number=1, silo_name="silo-b", state=SiloRoundState.FAILED)
    parts: Any = (None, store, None, None, Turns(), lambda *_: "")
    driver = RunDriver("r-1", world.spec, *parts)
    task = driver._open_task(1, np.zeros(SIZE, np.float32), minimum=1)
    assert task is not None
    assert (task.step, task.roster) == (1, ("silo-a",))
    assert driver._open_task(1, np.zeros(SIZE, np.float32), minimum=2) is None, "it is begun again, with all of them"
    assert store.rounds.list("r-1")[0].state is RoundState.ABANDONED
    store.close()
