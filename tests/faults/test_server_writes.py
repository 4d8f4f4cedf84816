"""The server dies before each of its file writes and each of its transactions of a run, as by kill -9 or as by a power
cut, and goes on from what is left: the same weights, every round once, no file that no row owns."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedplat import bufferfiles, durable
from fedplat.bufferfiles import DamagedPieceError
from fedplat.canonical import sha256_hex
from fedplat.errors import StoreUnavailableError
from fedplat.home import ServerHome
from fedplat.identity import fingerprint, load_public, new_key, public_pem
from fedplat.params import Layout, Parameter, Vector
from fedplat.reasons import Reason
from fedplat.spec import RunSpec, parse_spec
from fedplat.wire import buffers
from fedplat.wire.buffers import PieceHasher, to_bytes, to_vector
from fedplat.wire.codec import Parcel
from fedplat.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
    WeightsReply,
    layout_to_wire,
)
from fedplat_server import checkpoints, outgoing, road, vectors
from fedplat_server import context as run_context
from fedplat_server.aggregation import plain
from fedplat_server.beginning import Office, _initial, resume
from fedplat_server.checkpoints import Checkpoint, CheckpointError
from fedplat_server.closing import closing_evaluation
from fedplat_server.context import RoundLost, RoundTask, RunContext
from fedplat_server.driver import RunDriver
from fedplat_server.exchange import Given
from fedplat_server.recruiting import Agreement
from fedplat_server.registry import Member
from fedplat_server.road import Road
from fedplat_server.rounds import run_round
from fedplat_server.store import Store, open_store
from fedplat_server.transitions import RoundState, RunState, SiloRoundState
from fedplat_server.turns import Turns
from tests.support.crashes import Crash, CrashingFilesystem
from tests.support.deaths import at_every_transaction, at_every_write

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
[transport]
precision = "%s"
"""
PIECE_BYTES = 8
TRANSPORTS = ("in the message", "by the road", "by the road, in halves")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How weights and updates travel. What is large and comes in many pieces and blocks is only called so here."""
    for module in (vectors, plain, checkpoints):
        monkeypatch.setattr(module, "BLOCK", 2)
    for module in (buffers, bufferfiles, road):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE_BYTES)
    if request.param != "in the message":
        for module in (run_context, outgoing):
            monkeypatch.setattr(module, "INLINE_BYTES", 0)
    return str(request.param)


@dataclass
class Answering:
    """Silos that answer at once, always the same to the same: what an honest silo's spool does."""

    spec: RunSpec
    road: Road
    by_road: bool
    question: Request | None = None
    buffer: bytes = b""
    open: list[str] = field(default_factory=list)

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def waiting_for(self) -> tuple[str, ...]:
        return tuple(self.open)

    def ask(self, members: Sequence[Member], question: Request, buffer: bytes | memoryview = b"") -> None:
        self.question, self.buffer = question, bytes(buffer)
        self.open = [m.name for m in members]

    def answers(self, _timeout_s: float) -> list[Given[Reply]]:
        silo, asked = self.open.pop(0), self.question
        if isinstance(asked, EvaluateRequest):
            self._weights(silo)
            return [Given(silo, Parcel(EvaluateReply(run="r-1", silo=silo, round=asked.round)))]
        if isinstance(asked, TrainRequest):
            update = 0.1 * (1 + SILOS.index(silo)) * asked.round + 0.01 * self._weights(silo)
            reply = TrainReply(run="r-1", silo=silo, round=asked.round, step=asked.step, weight=1.0)
            return [self._with(reply, asked.step, update)]
        return [self._with(WeightsReply(run="r-1", silo=silo), 0, np.arange(SIZE, dtype=np.float32))]

    def _weights(self, silo: str) -> Vector:
        assert self.question is not None
        ref, data = self.question.buffer, self.buffer
        if ref is not None:
            region, _ = self.road.download(silo, "r-1", ref.digest, 0)
            assert region.is_good(ref)
            data = region.read(0, ref.size_bytes)
        return to_vector(data, self.spec.transport.precision)

    def _with(self, reply: Reply, step: int, numbers: Vector) -> Given[Reply]:
        data = bytes(to_bytes(numbers, self.spec.transport.precision))
        if self.by_road:
            reply, data = reply.model_copy(update={"buffer": self._send(reply.silo, step, data)}), b""
        return Given(reply.silo, Parcel(reply, data))

    def _send(self, silo: str, step: int, data: bytes) -> buffers.BufferRef:
        hasher = PieceHasher()
        hasher.update(data)
        ref = hasher.ref()
        have = self.road.announce(silo, "r-1", step, ref)
        while have < len(data):
            upload = self.road.upload(silo, "r-1", step, have)
            try:
                for part in (data[have : have + 3], data[have + 3 : have + upload.size_bytes]):
                    have = upload.write(part)
            except DamagedPieceError:  # what was there of this piece before the power went
                have = self.road.announce(silo, "r-1", step, ref)
        return ref


@dataclass(frozen=True)
class LocalOffice(Office):
    """Without a network."""

    def inquiry(self, _answer: object) -> Answering:  # type: ignore[override]
        return Answering(self.spec, self.road, by_road=not run_context.INLINE_BYTES)

    def members(self, names: Sequence[str]) -> list[Member]:
        return [Member(name, 1, "", new_key().public_key()) for name in names]


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

    def __init__(self, folder: Path, transport: str) -> None:
        self.folder = folder
        self.home = ServerHome(folder)
        self.spec: RunSpec = parse_spec(SPEC % ("bf16" if transport.endswith("halves") else "fp32"))
        self.layout = Layout.assign([Parameter("w", (SIZE,), "float32")], self.spec.model)
        self.url = f"sqlite:///{folder / 'fedplat.db'}"
        if folder.exists():
            return
        self.home.create()
        self.home.run("r-1").mkdir(parents=True)
        store = open_store(self.url)
        for name in SILOS:
            enrol(store, name)
        values = self.spec.model_dump(mode="json")
        store.runs.create(run_id="r-1", name="crash", spec=values, spec_hash=self.spec.hash, rounds_planned=ROUNDS)
        store.runs.set_state(run_id="r-1", state=RunState.RUNNING)
        store.close()

    def copy(self, name: str) -> World:
        """The same world, as it is now, in another folder."""
        folder = self.folder.with_name(name)
        shutil.copytree(self.folder, folder)
        return World(folder, "halves" if self.spec.transport.precision == "bf16" else "")

    def live(self) -> str:
        """A process of the server, from its start until the run is over; returns the hash of the last weights."""
        store = open_store(self.url)
        parts = (store, None, Road(on_trouble=lambda: None), None, 1, threading.Event(), Turns(), set())
        try:
            return self._life(LocalOffice("r-1", self.spec, self.home, *parts))  # type: ignore[arg-type]
        finally:
            store.close()

    def _life(self, office: Office) -> str:
        run = office.store.runs.get("r-1")
        if run.layout is None:
            context = office.context(self.layout, len(SILOS))
            model = _initial(office, context, Agreement(self.layout, SILOS, {}))
            layout = {"minimum": 2, "parameters": [p.model_dump(mode="json") for p in layout_to_wire(self.layout)]}
            where = {"weights_path": str(model.path), "weights_sha256": model.sha256}
            office.store.runs.set_layout(run_id="r-1", layout=layout, **where)
        else:
            start = resume(office, run)
            context, model = start.context, start.model
        for number in range(run.rounds_committed + 1, ROUNDS + 1):
            model = self._round(office, context, number, model)
            context.checkpoints.prune(1)
        closing_evaluation(context, model, office.members(SILOS), office.inquiry(EvaluateReply))
        context.checkpoints.prune(1)
        return office.store.runs.get("r-1").weights_sha256 or ""

    def _round(self, office: Office, context: RunContext, number: int, model: Checkpoint) -> Checkpoint:
        rows = context.store.rounds.list("r-1")
        unfinished = [r for r in rows if r.number == number and r.state is not RoundState.ABANDONED]
        step = unfinished[0].step if unfinished else max((r.step for r in rows), default=0) + 1
        task = RoundTask(number, step, model, SILOS)
        inquiry = office.inquiry(TrainReply)
        try:
            everybody = Everybody(office.members(SILOS))
            parts: Any = (everybody.members, inquiry, everybody, lambda *_: None)
            return run_round(context, task, *parts).model
        except RoundLost as lost:
            context.store.rounds.abandon(run_id="r-1", number=number, detail={"why": str(lost)})
            return self._round(office, context, number, model)

    def files(self) -> set[str]:
        """Every file but the database's own."""
        return {p.name for p in self.folder.rglob("*") if p.is_file() and not p.name.startswith("fedplat.db")}


def enrol(store: Store, name: str, pem: str | None = None) -> None:
    pem = pem or public_pem(new_key())
    secret_hash = sha256_hex(name)
    store.silos.invite(name=name, secret_hash=secret_hash, expires_at=datetime.now(UTC) + timedelta(hours=1))
    store.silos.redeem(
        name=name,
        secret_hash=secret_hash,
        now=datetime.now(UTC),
        public_key_pem=pem,
        fingerprint=fingerprint(load_public(pem)),
        node_id=int(secret_hash[:8], 16),
    )


@pytest.fixture
def world(tmp_path: Path, transport: str) -> World:
    """Before the first process."""
    return World(tmp_path / "new", transport)


@pytest.fixture
def expected(world: World) -> tuple[str, set[str]]:
    """What an undisturbed life leaves."""
    reference = world.copy("reference")
    return reference.live(), reference.files()


@pytest.mark.parametrize("power_loss", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_file_write_of_a_run(
    world: World, expected: tuple[str, set[str]], transport: str, monkeypatch: pytest.MonkeyPatch, power_loss: bool
) -> None:
    steps = []
    every = 3 if transport.endswith("halves") else 1  # those differ little from the others
    for tried, step in at_every_write(world, monkeypatch, power_loss=power_loss, every=every):
        assert (tried.live(), tried.files()) == expected, f"after a crash before step {step}"
        steps.append(step)
    kinds = {step.split(" ")[0] for step in steps}
    assert kinds >= {"mkdir", "open", "write", "fsync", "rename", "unlink"}
    assert ("reopen" in kinds) == (transport != "in the message")
    assert len(steps) * every > 70, "the points are enumerated, not guessed"


def test_every_transaction_of_a_run(
    world: World, expected: tuple[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_points = 0
    for tried in at_every_transaction(world, monkeypatch):
        assert (tried.live(), tried.files()) == expected, f"after a crash in transaction {num_points}"
        num_points += 1
    assert num_points >= 1 + ROUNDS * 5


@pytest.mark.parametrize("damaged", ["silo-a.upload", "silo-a.buffer"])
def test_a_lost_staged_update_begins_the_round_again(
    world: World, expected: tuple[str, set[str]], transport: str, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    """The cohort is fixed, the server dies, and a staged file is damaged on disk."""
    if damaged.endswith("buffer") and transport == "in the message":
        return
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.CheckpointWriter, "commit", dies_after_round_0)
        with pytest.raises(Crash):
            world.live()
    staged = world.home.staging("r-1") / damaged
    staged.write_bytes(staged.read_bytes()[:-1] + b"?")
    assert (world.live(), world.files()) == expected
    store = open_store(world.url)
    assert [r.step for r in store.rounds.list("r-1")] == [2, 3]
    store.close()


def dies_after_round_0(writer: checkpoints.CheckpointWriter) -> Checkpoint:
    if writer._round:
        raise Crash
    return commit(writer)


commit = checkpoints.CheckpointWriter.commit


def test_a_disk_that_is_full_once_costs_no_round(
    world: World, expected: tuple[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a crash, but the process hears of it: the run pauses, and goes on with what it has."""
    points = 0
    while True:
        tried = world.copy(f"d{points}")
        filesystem = FullOnce(points, power_loss=False)
        with monkeypatch.context() as patch:
            for module in (durable, bufferfiles):
                patch.setattr(module, "filesystem", filesystem)
            with suppress(OSError, CheckpointError, StoreUnavailableError):
                tried.live()
        if len(filesystem.steps) <= points:
            break
        assert (tried.live(), tried.files()) == expected, f"full at step {filesystem.steps[points]}"
        points += 7
    assert points > 70


class FullOnce(CrashingFilesystem):
    """A disk that is full for one step."""

    def _die(self) -> None:
        if len(self.steps) == self.at + 1:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_silo_that_failed_in_the_open_round_is_not_asked_again(tmp_path: Path) -> None:
    world = World(tmp_path / "new", "")
    store = open_store(world.url)
    store.rounds.open(run_id="r-1", number=1, step=1, roster=SILOS)
    store.rounds.silo_round(run_id="r-1", number=1, silo_name="silo-b", state=SiloRoundState.FAILED)
    parts: Any = (None, store, None, None, None, Turns(), lambda *_: "")
    driver = RunDriver("r-1", world.spec, *parts)
    model: Any = None
    task = driver._open_task(1, model, SimpleNamespace(minimum=1, secure=None))  # type: ignore[arg-type]
    assert task is not None
    assert (task.step, task.roster) == (1, ("silo-a",))
    again = driver._open_task(1, model, SimpleNamespace(minimum=2, secure=None))  # type: ignore[arg-type]
    assert again is None, "it is begun again, with all of them"
    assert store.rounds.list("r-1")[0].state is RoundState.ABANDONED
    store.close()
