"""The gate in front of every route: who may pass, before a byte of the body is read.

Flower's own authentication signs only a timestamp, so one silo could reuse another request's headers, and an unsigned
body is read before it is refused. Here every request but three is signed by the silo over method, path, body digest
and length, time and nonce; the body is then read to exactly that length and must have that digest.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedplat.errors import FedplatError, IdentityError
from fedplat.identity import ClockSkewError, NonceCache, SignedRequest, parse_headers, verify_request
from fedplat.wire.buffers import PIECE_BYTES
from fedplat.wire.http import BUFFERS, MEMBERSHIP, PREFIX, Problem
from fedplat_server.registry import Member, Registry
from fedplat_server.superlink.caller import caller_node_id
from fedplat_server.superlink.fleet import FLEET_ROUTES

OPEN_ROUTES = frozenset({f"{PREFIX}/ca", f"{PREFIX}/enrol", f"{PREFIX}/health"})
SIGNED_ROUTES = frozenset({f"{PREFIX}/wake", f"{PREFIX}/progress", f"{PREFIX}/leave", MEMBERSHIP, BUFFERS})
MAX_OPEN_BODY_BYTES = 8_192
MAX_SIGNED_BODY_BYTES = 65_536
MAX_FLEET_BODY_BYTES = 64 << 20  # small buffers ride in it, and a layout of many parameters
MAX_ANNOUNCEMENT_BYTES = 8 << 20  # 67 bytes a piece
MEMBER = "fedplat.member"
SIGNED = "fedplat.signed"
_LIMITS = {BUFFERS: MAX_ANNOUNCEMENT_BYTES, **dict.fromkeys(FLEET_ROUTES, MAX_FLEET_BODY_BYTES)}

ErrorWord = Literal[
    "malformed", "unsigned", "unknown_silo", "revoked", "clock_skew", "replayed", "too_large", "not_found"
]


class Refused(Exception):
    """This request ends here, with this answer."""

    def __init__(self, status: int, error: ErrorWord, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.problem = Problem(error=error, message=message, hint=hint)


@dataclass(frozen=True)
class Guard:
    """ASGI: lets signed requests of enrolled silos through to `fleet` or `ours`, and answers all others itself."""

    fleet: ASGIApp
    ours: ASGIApp
    registry: Registry
    nonces: NonceCache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            inner, body = await self._admit(scope, receive)
        except Refused as refused:
            headers = {"connection": "close"}
            answer = JSONResponse(refused.problem.model_dump(), status_code=refused.status, headers=headers)
            await answer(scope, receive, send)
            return
        await inner(scope, body, send)

    async def _admit(self, scope: Scope, receive: Receive) -> tuple[ASGIApp, Receive]:
        path = scope["path"]
        if path in OPEN_ROUTES:
            return self.ours, _replay(await _read_open(scope, receive), receive)
        is_buffer = path.startswith(f"{BUFFERS}/")
        if not is_buffer and path not in SIGNED_ROUTES and path not in FLEET_ROUTES:
            raise Refused(404, "not_found", "there is nothing at this address")
        member, signed = self._authenticate(scope)
        if path != MEMBERSHIP:  # anybody with the key may look; that is no sign that the silo is up
            self.registry.seen(member.name)
        scope[MEMBER], scope[SIGNED] = member, signed
        caller_node_id.set(member.node_id)
        _check_length(scope, signed)
        limit = PIECE_BYTES if is_buffer else _LIMITS.get(path, MAX_SIGNED_BODY_BYTES)
        if signed.body_size_bytes > limit:
            raise Refused(413, "too_large", f"the body has {signed.body_size_bytes} bytes, {limit} are allowed")
        if is_buffer:  # verified piece by piece as it comes
            return self.ours, receive
        body = await _read_signed(receive, signed)
        return (self.fleet if path in FLEET_ROUTES else self.ours), _replay(body, receive)

    def _authenticate(self, scope: Scope) -> tuple[Member, SignedRequest]:
        try:
            signed = parse_headers(Headers(scope=scope))
        except FedplatError as error:
            raise Refused(401, "unsigned", error.message, error.hint) from None
        member = self.registry.member(signed.silo) or self.registry.revoked(signed.silo)
        if member is None:
            raise Refused(401, "unknown_silo", f"no silo {signed.silo} is enrolled here", "ask for an invite")
        target = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        try:
            verify_request(signed, member.public_key, scope["method"], target, time.time(), self.nonces)
        except ClockSkewError as error:
            raise Refused(401, "clock_skew", error.message, error.hint) from None
        except IdentityError as error:
            raise Refused(401, "unsigned", error.message, error.hint) from None
        if self.registry.member(member.name) is None:
            hint = f"fedplat silo invite {member.name} lets it back in"
            raise Refused(403, "revoked", f"silo {member.name} was revoked", hint)
        return member, signed


async def _read_open(scope: Scope, receive: Receive) -> bytes:
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isascii() or not length.isdecimal() or int(length) > MAX_OPEN_BODY_BYTES:
        raise Refused(413, "too_large", f"at most {MAX_OPEN_BODY_BYTES} bytes, with their length announced")
    return await _read(receive, int(length))


def _check_length(scope: Scope, signed: SignedRequest) -> None:
    if Headers(scope=scope).get("content-length", "0") != str(signed.body_size_bytes):
        raise Refused(400, "malformed", "the body's length is not the one that was signed")


async def _read_signed(receive: Receive, signed: SignedRequest) -> bytes:
    body = await _read(receive, signed.body_size_bytes)
    if hashlib.sha256(body).hexdigest() != signed.body_sha256:
        raise Refused(400, "malformed", "the body is not the one that was signed")
    return body


async def _read(receive: Receive, size: int) -> bytes:
    """Exactly `size` bytes."""
    parts: list[bytes] = []
    got = 0
    more = True
    while more and got <= size:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "malformed", "the connection broke")
        parts.append(message.get("body", b""))
        got += len(parts[-1])
        more = message.get("more_body", False)
    if got != size:
        raise Refused(400, "malformed", f"{size} bytes were announced, {got} came")
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then whatever the connection says next (that it closed, for one)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
