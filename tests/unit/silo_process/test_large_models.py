"""A run whose weights and updates do not fit into messages, from the silo's app to a server of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from fedplat import bufferfiles, durable
from fedplat.home import SiloHome
from fedplat.params import Group, Layout, Parameter, Vector
from fedplat.reasons import Code
from fedplat.spec import RunSpec
from fedplat.spec.model import Precision
from fedplat.wire.buffers import PIECE_BYTES, to_bytes, to_vector
from fedplat.wire.codec import Parcel
from fedplat.wire.http import Phase
from fedplat.wire.messages import EvaluateReply, EvaluateRequest, TrainReply, TrainRequest, WeightsReply, WeightsRequest
from fedplat_silo import road
from fedplat_silo.client_app import make_client_app
from fedplat_silo.runs import Runs
from fedplat_silo.trainer.errors import Cancelled
from fedplat_silo.workplace import Site
from tests.support.crashes import Crash, CrashingFilesystem
from tests.unit.silo_process.fakes import Cast
from tests.unit.silo_process.roadside import RoadServer, name_of, road_server
from tests.unit.silo_process.test_client_app import Silo, failed, make_spec

SIZE = 1_500_000  # two pieces, also in bf16: one and a bit less
LAYOUT = Layout((Parameter("weight", (SIZE,), "float32"),), (Group.SHARED,))
SMALL = Layout((Parameter("weight", (300_000,), "float32"),), (Group.SHARED,))  # and yet too much for a message
FEW = np.ones(300_000, dtype=np.float32)
WEIGHTS = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)


class LargeSilo(Silo):
    def __init__(self, home: SiloHome, server: RoadServer, precision: str = "fp32") -> None:
        self.home, self.server = home, server
        self.spec: RunSpec = make_spec(data={"name": "none"}, transport={"precision": precision}, rounds={"count": 100})
        self.precision = self.spec.transport.precision
        self.cast = Cast(layout=LAYOUT, update=0.1)
        self.said = []
        self.runs = Runs(Site(home, self.cast.make, self.said.append, server.road))
        self.app = make_client_app(self.runs, home.name)

    def offer(self, weights: Vector = WEIGHTS) -> dict[str, object]:
        data = bytes(to_bytes(weights, self.precision))
        self.server.offers[name_of(data).digest] = data
        return {"run": "r-1", "spec_hash": self.spec.hash, "buffer": name_of(data)}

    def train_large(self, number: int = 1, step: int = 1, weights: Vector = WEIGHTS) -> Parcel[TrainReply]:
        self.server.expected.add(("r-1", step))
        facts = {"round": number, "step": step, "roster": ("hospital-a",), "evaluate": True}
        return self.ask(TrainRequest.model_validate(self.offer(weights) | facts), TrainReply)

    def files(self) -> list[str]:
        folder = self.home.spool / "r-1"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RoadServer]:
    monkeypatch.setattr(road, "REFUSED_PAUSE_S", 0.01)
    with road_server(tmp_path / "s") as made:
        yield made


def received(silo: LargeSilo, step: int) -> Vector:
    return to_vector(silo.server.content("r-1", step), silo.precision)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_round(home: SiloHome, server: RoadServer, precision: Precision) -> None:
    silo = LargeSilo(home, server, precision)
    silo.join(silo.spec)
    parcel = silo.train_large()
    assert parcel.body.failed is None
    assert parcel.buffer == b""
    assert parcel.body.buffer == name_of(server.content("r-1", 1))
    as_sent = torch.from_numpy(WEIGHTS)
    update = torch.full((SIZE,), 0.1)
    if precision is Precision.BF16:
        as_sent, update = as_sent.bfloat16().float(), update.bfloat16().float()
    np.testing.assert_array_equal(silo.cast.received, as_sent.numpy())
    np.testing.assert_array_equal(received(silo, 1), update.numpy())
    assert silo.files() == ["1.buffer", "1.update"], "the weights are of no use any more"
    shares = {phase: [p.share for p in silo.said if p.phase is phase] for phase in Phase}
    for phase in (Phase.RECEIVING, Phase.SENDING):
        assert shares[phase] == sorted(shares[phase])
        assert (shares[phase][0], shares[phase][-1]) == (0.0, 1.0)
        assert len(shares[phase]) > 5


def test_asked_again_it_sends_the_same_and_fetches_nothing(home: SiloHome, server: RoadServer) -> None:
    silo = LargeSilo(home, server)
    silo.join(silo.spec)
    first = silo.train_large()
    restarted = LargeSilo(home, server)
    restarted.cast.update = 0.2
    again = restarted.train_large(step=2)
    assert again.body == first.body.model_copy(update={"step": 2})
    assert server.content("r-1", 2) == server.content("r-1", 1)
    assert restarted.cast.did == []
    assert sum(seen.startswith("GET") for seen in server.seen) == 1


def test_what_the_transfers_took_counts_as_communicating(home: SiloHome, server: RoadServer) -> None:
    silo = LargeSilo(home, server)
    silo.join(silo.spec)
    server.pause_s = 0.002
    timings = [silo.train_large(n, n).body.timings.communicating_s - 0.125 for n in (1, 2)]
    down_s = SIZE * 4 / 50_000 * 0.002
    assert timings[0] >= down_s
    assert timings[1] >= 2 * down_s, "with the update before"


def test_initial_weights_and_the_last_evaluation(home: SiloHome, server: RoadServer) -> None:
    silo = LargeSilo(home, server)
    silo.join(silo.spec)
    server.expected.add(("r-1", 0))
    reply = silo.ask(WeightsRequest(run="r-1", spec_hash=silo.spec.hash), WeightsReply)
    assert reply.body.buffer == name_of(bytes(SIZE * 4))
    assert received(silo, 0).tolist() == [0.0] * SIZE
    assert silo.files() == ["0.buffer"]
    evaluated = silo.ask(EvaluateRequest.model_validate(silo.offer() | {"round": 3}), EvaluateReply)
    assert evaluated.body.failed is None
    assert silo.cast.did == ["start", "evaluate 3"]
    figures = ["4.buffer", "4.update"]
    assert silo.files() == ["0.buffer", *figures]
    silo.train_large()
    assert silo.files() == ["1.buffer", "1.update", *figures]


def test_weights_of_another_size_are_not_even_fetched(home: SiloHome, server: RoadServer) -> None:
    silo = LargeSilo(home, server)
    silo.join(silo.spec)
    assert failed(silo.train_large(weights=WEIGHTS[:-1]).body) is Code.MESSAGE_INVALID
    assert server.seen == []


@pytest.mark.parametrize("phase", [Phase.RECEIVING, Phase.SENDING])
def test_a_run_that_ends_ends_its_transfer_at_once(home: SiloHome, server: RoadServer, phase: Phase) -> None:
    silo = LargeSilo(home, server)
    silo.join(silo.spec)
    outcome: list[BaseException] = []
    reached = threading.Event()

    def slow_down(_passed: int) -> None:
        if any(p.phase is phase and p.share > 0 for p in silo.said):
            reached.set()
            time.sleep(0.3)

    def train() -> None:
        try:
            silo.train_large()
        except Cancelled as error:
            outcome.append(error)

    server.on_chunk = slow_down
    thread = threading.Thread(target=train)
    thread.start()
    assert reached.wait(10)
    begun_s = time.monotonic()
    silo.runs.cancel("r-1")
    thread.join(10)
    assert time.monotonic() - begun_s < 1.0
    silo.runs.end("r-1")
    assert len(outcome) == 1
    assert silo.files() == []
    assert server.passed_bytes < 2 * SIZE * 4


class SilosDisk(CrashingFilesystem):
    """The server of the test, whose threads are others, has a disk that works."""

    def _step(self, name: str) -> None:
        if threading.current_thread() is threading.main_thread():
            super()._step(name)


@pytest.mark.parametrize("power_loss", [False, True], ids=["kill", "power loss"])
def test_death_at_every_write_of_a_round(
    home: SiloHome, server: RoadServer, power_loss: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds a run: the second must not be led astray by what the first has left."""
    silo = LargeSilo(home, server)
    silo.cast.layout = SMALL
    silo.join(silo.spec)
    silo.train_large(1, 1, FEW)
    for number in range(2, 100):
        silo.cast.update = float(number)
        disk = SilosDisk(number - 2, power_loss=power_loss)
        monkeypatch.setattr(durable, "filesystem", disk)
        monkeypatch.setattr(bufferfiles, "filesystem", disk)
        with suppress(Crash):
            silo.train_large(number, number, FEW * number)
        monkeypatch.setattr(durable, "filesystem", durable.Filesystem())
        monkeypatch.setattr(bufferfiles, "filesystem", durable.filesystem)
        silo = LargeSilo(home, server)
        silo.cast.layout, silo.cast.update = SMALL, float(number)
        assert silo.train_large(number, number, FEW * number).body.failed is None
        np.testing.assert_array_equal(received(silo, number), np.full(FEW.size, number, dtype=np.float32))
        assert silo.files() == [f"{number}.buffer", f"{number}.update"], disk.steps[-1]
        if len(disk.steps) <= disk.at:
            break
    assert len(disk.steps) > 15, "the last had no fault, and all of these were struck"


def test_a_killed_process_goes_on_with_what_is_on_disk(home: SiloHome, server: RoadServer) -> None:
    silo = LargeSilo(home, server)
    silo.join(silo.spec)
    server.on_chunk = lambda passed: silo.runs.stop() if passed > PIECE_BYTES + 100_000 else None
    with pytest.raises(Cancelled):
        silo.train_large()
    assert [name[-9:] for name in silo.files()] == [".incoming"]
    server.on_chunk = lambda _passed: None
    restarted = LargeSilo(home, server)
    assert restarted.train_large(step=2).body.failed is None
    down_bytes = server.passed_bytes - SIZE * 4
    assert down_bytes < SIZE * 4 + PIECE_BYTES
    assert any(seen.startswith("GET") and not seen.endswith("offset=0") for seen in server.seen)


def test_an_interrupted_transfer_makes_room_for_the_next_round(home: SiloHome, server: RoadServer) -> None:
    silo = LargeSilo(home, server)
    silo.join(silo.spec)
    server.on_chunk = lambda passed: silo.runs.interrupt("r-1") if passed > PIECE_BYTES else None
    with pytest.raises(Cancelled):
        silo.train_large()
    server.on_chunk = lambda _passed: None
    assert silo.train_large(2, 2, WEIGHTS * 2).body.failed is None
    assert "train 1" not in silo.cast.did
    assert silo.cast.did[-1] == "train 2"
    assert silo.files() == ["2.buffer", "2.update"]
