from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, Metadata
from flwr.app.message.message import make_message

from fedplat import durable
from fedplat.errors import ConflictError, ConnectionLostError
from fedplat.home import SiloHome
from fedplat.reasons import Code
from fedplat.wire.codec import from_record, to_record
from fedplat.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    JoinRequest,
    Request,
    TrainReply,
    TrainRequest,
)
from fedplat_silo import inbox as inbox_module
from fedplat_silo.backoff import Backoff
from fedplat_silo.client_app import make_client_app
from fedplat_silo.inbox import Inbox
from fedplat_silo.runs import Runs
from fedplat_silo.workplace import Site
from tests.unit.silo_process.fakes import Cast, no_road
from tests.unit.silo_process.test_client_app import WEIGHTS, make_spec

SPEC = make_spec(data={"name": "none"})


@dataclass
class FakeFleet:
    """Messages to hand out, errors to raise first, replies that arrived."""

    waiting: list[Message] = field(default_factory=list)
    troubles: list[Exception] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)
    num_pushes: int = 0

    def send(self, message_id: str, request: Request, weights: bool = False) -> None:
        metadata = Metadata(1, message_id, 1, 2, "", "", time.time(), 60.0, request.kind)
        self.waiting.append(make_message(metadata, to_record(request, WEIGHTS.tobytes() if weights else b"")))

    def pull(self) -> Any:
        if not self.waiting:
            return None
        message = self.waiting.pop(0)
        return SimpleNamespace(id=message.metadata.message_id, head=message)

    def open(self, delivery: Any) -> Message:
        message: Message = delivery.head
        return message

    def push(self, reply: Message) -> None:
        self.num_pushes += 1
        if self.troubles:
            raise self.troubles.pop(0)
        self.replies.append(reply)


@dataclass
class Desk:
    fleet: FakeFleet
    inbox: Inbox
    cast: Cast
    runs: Runs
    failures: list[Exception]


@pytest.fixture
def desk(home: SiloHome, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (0.02, 0.05))
    monkeypatch.setattr(inbox_module, "REFUSED_PAUSE_S", 0.02)
    stop, failures, threads = threading.Event(), [], []

    def spawn(name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001  (checked at the end)
                failures.append(error)

        threads.append(threading.Thread(target=guarded, name=name, daemon=True))
        threads[-1].start()

    cast, fleet = Cast(), FakeFleet()
    runs = Runs(Site(home, cast.make, lambda _progress: None, no_road))
    made: Any = fleet
    inbox = Inbox(made, make_client_app(runs, home.name), runs, stop, spawn)
    spawn("opener", inbox.open_messages)
    yield Desk(fleet, inbox, cast, runs, failures)
    stop.set()
    assert failures == []


def join_request(run: str = "r-1") -> JoinRequest:
    return JoinRequest(run=run, spec_hash=SPEC.hash, spec=SPEC.canonical(), num_silos=1)


def train_request(number: int) -> TrainRequest:
    return TrainRequest(run="r-1", spec_hash=SPEC.hash, round=number, step=number, roster=(), evaluate=False)


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def joined(desk: Desk) -> None:
    desk.fleet.send("m-join", join_request())
    desk.inbox.pull()
    until(lambda: desk.inbox.holding() == () and len(desk.fleet.replies) == 1)


def test_a_message_is_held_until_it_is_answered(desk: Desk) -> None:
    joined(desk)
    desk.cast.busy = threading.Event()
    desk.fleet.send("m-1", train_request(1), weights=True)
    desk.inbox.pull()
    assert desk.cast.busy.wait(5)
    assert desk.inbox.holding() == ("m-1",)
    desk.inbox.end("r-1")
    until(lambda: desk.inbox.holding() == ())
    assert len(desk.fleet.replies) == 1, "a run that is over gets no answer"
    until(lambda: not any(t.name == "run r-1" for t in threading.enumerate()))
    assert desk.runs.names == ()


def test_a_lost_connection_is_tried_again_and_nothing_is_computed_twice(desk: Desk) -> None:
    joined(desk)
    desk.fleet.troubles = [ConnectionLostError("away")] * 3
    desk.fleet.send("m-1", train_request(1), weights=True)
    desk.inbox.pull()
    until(lambda: len(desk.fleet.replies) == 2)
    assert desk.cast.did.count("train 1") == 1
    assert desk.fleet.num_pushes == 5


def test_what_the_server_does_not_take_is_let_go_and_asked_for_again(desk: Desk) -> None:
    joined(desk)
    desk.fleet.troubles = [ConflictError("who are you answering?")]
    desk.fleet.send("m-1", train_request(1), weights=True)
    desk.inbox.pull()
    until(lambda: desk.fleet.num_pushes == 2 and desk.inbox.holding() == ())
    desk.fleet.send("m-2", train_request(1), weights=True)
    desk.inbox.pull()
    until(lambda: len(desk.fleet.replies) == 2)
    reply = desk.fleet.replies[-1]
    assert reply.metadata.reply_to_message_id == "m-2"
    assert from_record(reply.content, TrainReply).vector(4).tolist() == [1, 1, 1, 1]
    assert desk.cast.did.count("train 1") == 1


def test_a_newer_message_of_the_run_ends_the_sending_of_the_older_reply(desk: Desk) -> None:
    joined(desk)
    desk.fleet.troubles = [ConnectionLostError("away")] * 5
    desk.fleet.send("m-1", train_request(1), weights=True)
    desk.inbox.pull()
    until(lambda: desk.fleet.num_pushes >= 2)
    desk.fleet.send("m-2", train_request(2), weights=True)
    desk.inbox.pull()
    until(lambda: len(desk.fleet.replies) == 2)
    assert desk.fleet.replies[-1].metadata.reply_to_message_id == "m-2"


def busy_with_round_1(desk: Desk) -> None:
    joined(desk)
    desk.cast.busy = threading.Event()
    desk.fleet.send("m-1", train_request(1), weights=True)
    desk.inbox.pull()
    assert desk.cast.busy.wait(5)
    desk.cast.busy = None


def test_a_later_round_ends_the_training_of_an_earlier_one(desk: Desk) -> None:
    busy_with_round_1(desk)
    desk.fleet.send("m-2", train_request(2), weights=True)
    desk.inbox.pull()
    until(lambda: len(desk.fleet.replies) == 2 and desk.inbox.holding() == ())
    assert desk.fleet.replies[-1].metadata.reply_to_message_id == "m-2"
    assert desk.cast.did == ["start", "train 1", "cancel", "train 2"]


def test_the_closing_evaluation_ends_the_training_too(desk: Desk) -> None:
    busy_with_round_1(desk)
    desk.fleet.send("m-2", EvaluateRequest(run="r-1", spec_hash=SPEC.hash, round=1), weights=True)
    desk.inbox.pull()
    until(lambda: len(desk.fleet.replies) == 2)
    assert from_record(desk.fleet.replies[-1].content, EvaluateReply).body.failed is None
    assert desk.cast.did == ["start", "train 1", "cancel", "evaluate 1"]


def test_the_same_round_again_does_not_end_its_training(desk: Desk) -> None:
    busy_with_round_1(desk)
    again = train_request(1).model_copy(update={"step": 2})
    desk.fleet.send("m-2", again, weights=True)
    desk.inbox.pull()
    until(lambda: desk.inbox.holding() == ("m-1", "m-2"))
    time.sleep(0.1)
    assert desk.cast.did == ["start", "train 1"]
    desk.inbox.end("r-1")
    until(lambda: desk.inbox.holding() == ())


def test_of_several_rounds_that_wait_only_the_last_is_trained(desk: Desk) -> None:
    busy_with_round_1(desk)
    opened = threading.Event()
    real_open = desk.fleet.open

    def slow(delivery: Any) -> Message:
        opened.wait(5)
        return real_open(delivery)

    desk.fleet.open = slow  # type: ignore[method-assign]
    desk.inbox.pull()
    for number in (2, 3):
        desk.fleet.send(f"m-{number}", train_request(number), weights=True)
        desk.inbox.pull()
    opened.set()
    until(lambda: desk.inbox.holding() == ())
    assert desk.fleet.replies[-1].metadata.reply_to_message_id == "m-3"
    assert desk.cast.did[-1] == "train 3"
    assert len(desk.cast.did) <= 6


def test_other_runs_are_told_that_it_is_busy_while_it_trains(desk: Desk) -> None:
    joined(desk)
    desk.cast.busy = threading.Event()
    desk.fleet.send("m-1", train_request(1), weights=True)
    desk.fleet.send("m-2", join_request("r-2"))
    desk.inbox.pull()
    desk.inbox.pull()
    until(lambda: len(desk.fleet.replies) == 2)
    failed = from_record(desk.fleet.replies[-1].content, JoinReply).body.failed
    assert failed is not None
    assert failed.code is Code.BUSY
    assert desk.inbox.holding() == ("m-1",)
    desk.inbox.end("r-1")
    until(lambda: desk.inbox.holding() == ())


def test_a_message_that_makes_no_sense_is_answered_and_does_no_harm(desk: Desk) -> None:
    metadata = Metadata(1, "m-x", 1, 2, "", "", time.time(), 60.0, "query.agree")
    desk.fleet.waiting.append(make_message(metadata, to_record(join_request())))
    desk.inbox.pull()
    until(lambda: len(desk.fleet.replies) == 1)
    assert desk.fleet.replies[0].has_error()
    joined_before = len(desk.fleet.replies)
    desk.fleet.send("m-join", join_request())
    desk.inbox.pull()
    until(lambda: len(desk.fleet.replies) == joined_before + 1)
    assert desk.failures == []


def test_a_disk_that_is_full_when_a_run_ends_does_not_end_the_silo(
    desk: Desk, home: SiloHome, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(durable.Filesystem):
        def write(self, fd: int, data: memoryview) -> int:
            raise OSError(28, "No space left on device")

    joined(desk)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "filesystem", Full())
        desk.inbox.end("r-1")
        until(lambda: "could not be tidied away" in caplog.text)
    until(lambda: desk.runs.names == ())
    assert Runs(Site(home, desk.cast.make, lambda _progress: None, no_road)).names == ("r-1",), (
        "the next start asks about it"
    )
