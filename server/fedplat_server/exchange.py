"""Questions to the silos of one run, and their answers as they come."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from flwr.app import RecordDict

from fedplat.errors import WireError
from fedplat.params import Vector
from fedplat.reasons import Code, Reason
from fedplat.wire.codec import Parcel, from_record, to_record
from fedplat.wire.messages import Reply, Request
from fedplat_server.registry import Member
from fedplat_server.superlink import Link, Outgoing

Answer = TypeVar("Answer", bound=Reply)


class RunStopped(Exception):
    """The run was stopped, or the server is going down."""


@dataclass(frozen=True)
class Given(Generic[Answer]):
    """One silo's answer, and the size of its message in bytes."""

    silo: str
    parcel: Parcel[Answer]

    @property
    def failed(self) -> Reason | None:
        """Why the silo did not do what it was asked."""
        return self.parcel.body.failed


class Inquiry(Generic[Answer]):
    """One question to several silos. Closing it withdraws what is not answered."""

    def __init__(self, link: Link, flower_run: int, answer: type[Answer], stop: threading.Event) -> None:
        self._link = link
        self._flower_run = flower_run
        self._answer = answer
        self._stop = stop
        self._open: dict[str, str] = {}

    def __enter__(self) -> Inquiry[Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.withdraw(self._open)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The silos that were asked and have not answered, in the order asked."""
        return tuple(self._open.values())

    def ask(self, members: list[Member], question: Request, vector: Vector | None = None) -> None:
        """Send one question to silos; equal bytes are kept once for all of them."""
        record = to_record(question, vector)
        names = {m.node_id: m.name for m in members}
        posted = self._link.post(self._flower_run, (Outgoing(m.node_id, question.kind, record) for m in members))
        self._open |= {message_id: names[node_id] for node_id, message_id in posted.items()}

    def answers(self, timeout_s: float) -> list[Given[Answer]]:
        """What has come since the last call; waits up to `timeout_s` for something. RunStopped if so."""
        deadline = time.monotonic() + timeout_s
        with self._link.replies:
            while True:
                if self._stop.is_set():
                    raise RunStopped
                found = self._link.collect(self._open)
                left_s = deadline - time.monotonic()
                if found or left_s <= 0:
                    break
                self._link.replies.wait(left_s)
        return [self._read(self._open.pop(message_id), reply) for message_id, reply in found.items()]

    def pause(self, timeout_s: float) -> None:
        """Wait until something happens anywhere (a silo comes or goes), at most `timeout_s`. RunStopped if so."""
        with self._link.replies:
            if not self._stop.is_set():
                self._link.replies.wait(timeout_s)
        if self._stop.is_set():
            raise RunStopped

    def _read(self, silo: str, reply: RecordDict | WireError) -> Given[Answer]:
        try:
            if isinstance(reply, WireError):
                raise reply
            parcel = from_record(reply, self._answer)
            if parcel.body.silo != silo:
                raise WireError("an answer carries another silo's name")
        except WireError:
            failed = Reason.of(Code.MESSAGE_INVALID)
            garbled = cast(Answer, self._answer.model_construct(run="", silo=silo, failed=failed))
            return Given(silo, Parcel(garbled))
        return Given(silo, parcel)
