"""The administrator's routes, on a Unix socket that only the server's user can open."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from fedplat import __version__
from fedplat.errors import FedplatError, WireError
from fedplat_server.administration import Administration

Handler = Callable[[Request], Awaitable[Response]]


def admin_app(admin: Administration) -> Starlette:
    """JSON in, JSON out; an error is `{"message", "hint"}` with status 400."""

    def answer(operation: Callable[..., object]) -> Handler:
        """A route that calls `operation` with the path's parameters."""

        async def handle(request: Request) -> Response:
            return JSONResponse(await run_in_threadpool(operation, **request.path_params))

        return handle

    async def ping(_request: Request) -> Response:
        return JSONResponse({"fedplat": __version__, "address": admin.identity.address})

    async def invite(request: Request) -> Response:
        body = await _json(request)
        name, rotate = str(body.get("silo", "")), bool(body.get("rotate", False))
        lifetime_s = int(str(body.get("lifetime_s", 86_400)))
        view = await run_in_threadpool(admin.invite, name, rotate=rotate, lifetime_s=lifetime_s)
        return JSONResponse(view)

    async def submit(request: Request) -> Response:
        """The body is the spec's JSON, a NUL byte where weights follow, and the weights."""
        head, found, init = (await request.body()).partition(b"\0")
        return JSONResponse(await run_in_threadpool(admin.submit, _parse(head), init if found else None))

    async def weights(request: Request) -> Response:
        number = request.query_params.get("round")
        path = await run_in_threadpool(admin.weights, request.path_params["prefix"], int(number) if number else None)
        return FileResponse(path, media_type="application/octet-stream")

    async def resume(request: Request) -> Response:
        number = (await _json(request)).get("from_round")
        from_round = int(str(number)) if number is not None else None
        return JSONResponse(await run_in_threadpool(admin.resume, request.path_params["prefix"], from_round))

    async def events(request: Request) -> Response:
        query = request.query_params
        found = await run_in_threadpool(admin.events, query.get("run"), int(query.get("after", "0")))
        return JSONResponse(found)

    routes = [
        Route("/ping", ping),
        Route("/invites", invite, methods=["POST"]),
        Route("/silos", answer(admin.silos)),
        Route("/silos/{name}", answer(admin.silo)),
        Route("/silos/{name}/revoke", answer(admin.revoke), methods=["POST"]),
        Route("/runs", answer(admin.runs)),
        Route("/runs", submit, methods=["POST"]),
        Route("/runs/{prefix}", answer(admin.run)),
        Route("/runs/{prefix}/snapshot", answer(admin.snapshot)),
        Route("/runs/{prefix}/stop", answer(admin.stop), methods=["POST"]),
        Route("/runs/{prefix}/pause", answer(admin.pause), methods=["POST"]),
        Route("/runs/{prefix}/continue", answer(admin.go_on), methods=["POST"]),
        Route("/runs/{prefix}/resume", resume, methods=["POST"]),
        Route("/runs/{prefix}/checkpoints", answer(admin.checkpoints)),
        Route("/runs/{prefix}/weights", weights),
        Route("/ledgers", answer(admin.ledgers)),
        Route("/events", events),
    ]
    return Starlette(routes=routes, exception_handlers={FedplatError: _problem})


async def _json(request: Request) -> dict[str, object]:
    body = _parse(await request.body())
    if not isinstance(body, dict):
        raise WireError("a JSON object was expected")
    return body


def _parse(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        raise WireError("the request is not JSON") from None


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, FedplatError)
    return JSONResponse({"message": error.message, "hint": error.hint}, status_code=400)
