"""The long poll: a silo holds one request open, and the server answers it the moment there is something to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from fedplat.errors import NotFoundError
from fedplat.wire.http import WAKE_TIMEOUT_S, WakeReply, WakeRequest
from fedplat_server.registry import Member, Registry


@dataclass
class Bell:
    """Rings for waiting requests from any thread. Whoever waits registers first and looks at the state then."""

    _loop: asyncio.AbstractEventLoop | None = None
    _waiting: dict[int, set[asyncio.Event]] = field(default_factory=dict)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop in which requests wait."""
        self._loop = loop

    def ring(self, node_id: int) -> None:
        """Let one silo's requests look again. Before the server listens there is nobody to wake."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring, node_id)

    def ring_all(self) -> None:
        """Let everybody look again: a run ended, the server is going down."""
        for node_id in list(self._waiting):
            self.ring(node_id)

    def _ring(self, node_id: int) -> None:
        for event in self._waiting.get(node_id, ()):
            event.set()

    def waiter(self, node_id: int) -> asyncio.Event:
        """An event that `ring(node_id)` sets, until `remove`."""
        event = asyncio.Event()
        self._waiting.setdefault(node_id, set()).add(event)
        return event

    def remove(self, node_id: int, event: asyncio.Event) -> None:
        """Stop listening."""
        waiting = self._waiting[node_id]
        waiting.discard(event)
        if not waiting:
            del self._waiting[node_id]


@dataclass(frozen=True)
class Waker:
    """Answers wake requests. `has_work(node, holding)`, `is_live(run, silo)` and `closing()` are asked at each ring."""

    registry: Registry
    bell: Bell
    has_work: Callable[[int, frozenset[str]], bool]
    is_live: Callable[[str, str], bool]
    closing: Callable[[], bool]
    timeout_s: float = WAKE_TIMEOUT_S

    async def wake(self, request: Request, member: Member, body: WakeRequest) -> WakeReply:
        """ConflictError if another process is connected as this silo, NotFoundError if it was revoked meanwhile."""
        self.registry.begin_wake(member.name, body)
        event = self.bell.waiter(member.node_id)
        broken = asyncio.create_task(_disconnected(request))
        try:
            return await self._wait(member, body, event, broken)
        finally:
            self.bell.remove(member.node_id, event)
            self.registry.end_wake(member.name, body, gone=broken.done())
            broken.cancel()

    async def _wait(
        self, member: Member, body: WakeRequest, event: asyncio.Event, broken: asyncio.Task[None]
    ) -> WakeReply:
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        holding = frozenset(body.holding)
        rung = False
        while True:
            event.clear()
            reply = self._look(member, body, holding)
            left_s = deadline - asyncio.get_running_loop().time()
            # A ring without a message is about a run, which the silo may have joined since: let it call anew.
            if rung or reply.messages or reply.runs != body.runs or left_s <= 0 or broken.done() or self.closing():
                return reply
            ring = asyncio.create_task(event.wait())
            await asyncio.wait({ring, broken}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            rung = event.is_set()
            ring.cancel()

    def _look(self, member: Member, body: WakeRequest, holding: frozenset[str]) -> WakeReply:
        if self.registry.member(member.name) is not member:
            raise NotFoundError(f"silo {member.name} was revoked, or has another key now")
        # A server that goes down has no run alive, but none of them is over.
        alive = tuple(run for run in body.runs if self.closing() or self.is_live(run, member.name))
        return WakeReply(messages=self.has_work(member.node_id, holding), runs=alive)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
