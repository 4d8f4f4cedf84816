"""Our own routes for silos: the CA, enrolment, wake-ups, progress, leaving, health."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fedplat import __version__
from fedplat.bufferfiles import DamagedPieceError
from fedplat.errors import ConflictError, FedplatError, IdentityError, NotFoundError, StoreError, WireError
from fedplat.wire.http import PREFIX, EnrolReply, EnrolRequest, Health, Known, Problem, Progress, WakeRequest
from fedplat_server.api.buffers import BufferRoutes
from fedplat_server.api.guard import MEMBER
from fedplat_server.api.wake import Waker
from fedplat_server.registry import Member, Registry

Body = TypeVar("Body", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class SiloRoutes:
    """What the routes need: `enrol` and `leave` are calls that touch the store."""

    ca_pem: str
    buffers: BufferRoutes
    registry: Registry
    waker: Waker
    enrol: Callable[[EnrolRequest], EnrolReply]
    leave: Callable[[str], None]

    def app(self) -> Starlette:
        """The ASGI app behind the guard."""
        endpoints: list[tuple[str, str, Endpoint]] = [
            ("GET", "ca", self._ca),
            ("GET", "health", self._health),
            ("GET", "membership", self._membership),
            ("POST", "enrol", self._enrol),
            ("POST", "wake", self._wake),
            ("POST", "progress", self._progress),
            ("POST", "leave", self._leave),
        ]
        routes = [Route(f"{PREFIX}/{name}", answer, methods=[method]) for method, name, answer in endpoints]
        routes += self.buffers.routes()
        return Starlette(routes=routes, exception_handlers={FedplatError: _problem})

    async def _ca(self, _request: Request) -> Response:
        return PlainTextResponse(self.ca_pem)

    async def _health(self, _request: Request) -> Response:
        return JSONResponse(Health(fedplat=__version__, time=time.time()).model_dump())

    async def _membership(self, request: Request) -> Response:
        """Changes nothing: for those who want to know whether the server still takes them for that silo."""
        member = _member(request)
        return JSONResponse(Known(silo=member.name, connected=self.registry.is_here(member.name)).model_dump())

    async def _enrol(self, request: Request) -> Response:
        reply = await run_in_threadpool(self.enrol, await _body(request, EnrolRequest))
        return JSONResponse(reply.model_dump())

    async def _wake(self, request: Request) -> Response:
        reply = await self.waker.wake(request, _member(request), await _body(request, WakeRequest))
        return JSONResponse(reply.model_dump())

    async def _progress(self, request: Request) -> Response:
        self.registry.report(_member(request).name, await _body(request, Progress))
        return Response(status_code=204)

    async def _leave(self, request: Request) -> Response:
        await run_in_threadpool(self.leave, _member(request).name)
        return Response(status_code=204)


def _member(request: Request) -> Member:
    member: Member = request.scope[MEMBER]
    return member


async def _body(request: Request, model: type[Body]) -> Body:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) or "body" for e in error.errors(include_url=False)[:5])
        raise WireError(f"malformed {model.__name__}: {fields}") from None


_STATUS: tuple[tuple[type[FedplatError], int, str], ...] = (
    (DamagedPieceError, 400, "damaged"),
    (WireError, 400, "malformed"),
    (IdentityError, 403, "refused"),
    (NotFoundError, 403, "revoked"),
    (ConflictError, 409, "conflict"),
    (StoreError, 503, "unavailable"),
)


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, FedplatError)
    status, word = next(((s, w) for kind, s, w in _STATUS if isinstance(error, kind)), (400, "malformed"))
    body = Problem.model_validate({"error": word, "message": error.message, "hint": error.hint})
    return JSONResponse(body.model_dump(), status_code=status)
