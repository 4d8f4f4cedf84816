"""Questions to the silos of one run, and their answers as they come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from flwr.app import RecordDict

from fedplat.errors import IdentityError, WireError
from fedplat.reasons import Code, Reason
from fedplat.wire.codec import Parcel, from_record, to_record
from fedplat.wire.messages import Reply, Request
from fedplat_server.registry import Member
from fedplat_server.superlink import Link, Outgoing

_log = logging.getLogger(__name__)
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


class Attendance(Protocol):
    """Who is there, from round to round; `Membership`."""

    def lost(self, silo: str, reason: Reason) -> None:
        """A silo is away for a while."""

    def present(self) -> Sequence[Member]:
        """The run's silos that are not away, or not any more."""


class Inquiry(Generic[Answer]):
    """One question to several silos. Closing it withdraws what is not answered. A silo that `is_enrolled` no longer is
    answered for: REVOKED. `hear` takes each answer before anything else; it raises WireError or IdentityError for one
    that does not count."""

    def __init__(
        self,
        link: Link,
        flower_run: int,
        answer: type[Answer],
        stop: threading.Event,
        is_enrolled: Callable[[Member], bool],
        hear: Callable[[Member, Reply], None] = lambda _member, _reply: None,
    ) -> None:
        self._link = link
        self._flower_run = flower_run
        self._answer = answer
        self._stop = stop
        self._is_enrolled = is_enrolled
        self._hear = hear
        self._open: dict[str, Member] = {}

    def __enter__(self) -> Inquiry[Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.withdraw(self._open)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The silos that were asked and have not answered, in the order asked."""
        return tuple(member.name for member in self._open.values())

    def ask(self, members: Sequence[Member], question: Request, buffer: bytes | memoryview = b"") -> None:
        """Send one question to silos; equal bytes are kept once for all of them."""
        record = to_record(question, buffer)
        by_node = {m.node_id: m for m in members}
        posted = self._link.post(self._flower_run, (Outgoing(m.node_id, question.kind, record) for m in members))
        self._open |= {message_id: by_node[node_id] for node_id, message_id in posted.items()}

    def withdraw(self, silos: Collection[str]) -> None:
        """Take the question back from some silos."""
        withdrawn = {message_id for message_id, member in self._open.items() if member.name in silos}
        self._link.withdraw(withdrawn)
        for message_id in withdrawn:
            del self._open[message_id]

    def answers(self, timeout_s: float) -> list[Given[Answer]]:
        """What has come since the last call; waits up to `timeout_s` for something. RunStopped if so."""
        deadline = time.monotonic() + timeout_s
        with self._link.replies:
            while True:
                if self._stop.is_set():
                    raise RunStopped
                found = self._link.collect(self._open)
                gone = [i for i, m in self._open.items() if i not in found and not self._is_enrolled(m)]
                left_s = deadline - time.monotonic()
                if found or gone or left_s <= 0:
                    break
                self._link.replies.wait(left_s)
        given = [self._read(self._open.pop(message_id), reply) for message_id, reply in found.items()]
        return given + [self._failed(self._open.pop(message_id).name, Code.REVOKED) for message_id in gone]

    def pause(self, timeout_s: float) -> None:
        """Wait until something happens anywhere (a silo comes or goes), at most `timeout_s`. RunStopped if so."""
        with self._link.replies:
            if not self._stop.is_set():
                self._link.replies.wait(timeout_s)
        if self._stop.is_set():
            raise RunStopped

    def _read(self, member: Member, reply: RecordDict | WireError) -> Given[Answer]:
        silo = member.name
        try:
            if isinstance(reply, WireError):
                raise reply
            parcel = from_record(reply, self._answer)
            if parcel.body.silo != silo:
                raise WireError("an answer carries another silo's name")
            self._hear(member, parcel.body)
        except (WireError, IdentityError) as error:
            _log.warning("an answer of silo %s does not count: %s", silo, error.message)
            return self._failed(silo, Code.MESSAGE_INVALID)
        return Given(silo, parcel)

    def _failed(self, silo: str, code: Code) -> Given[Answer]:
        """The answer of a silo that has not given one."""
        reply = self._answer.model_construct(run="", silo=silo, failed=Reason.of(code))
        return Given(silo, Parcel(cast(Answer, reply)))
