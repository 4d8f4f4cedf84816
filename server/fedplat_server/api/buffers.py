"""The routes of large buffers: bytes pass from the connection to the disk and back, never through one big object."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from io import FileIO

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fedplat.bufferfiles import Region
from fedplat.errors import ConflictError, WireError
from fedplat.wire.http import BUFFERS, Announcement, Standing
from fedplat_server.api.guard import MEMBER, SIGNED
from fedplat_server.registry import Registry
from fedplat_server.road import Road, Transfer, Upload

# Large enough that a hop to a worker thread costs nothing, small enough for many silos at once.
_CHUNK_BYTES = 128 * 1024
_MAX_DIGITS = 18


@dataclass(frozen=True)
class BufferRoutes:
    """Behind the guard, which has checked the signature but has read nothing of a PUT's body."""

    road: Road
    registry: Registry

    def routes(self) -> list[Route]:
        """For the app of our routes."""
        return [
            Route(BUFFERS, self._announce, methods=["POST"]),
            Route(BUFFERS + "/{run}/{step}", self._put, methods=["PUT"]),
            Route(BUFFERS + "/{run}/{digest}", self._get, methods=["GET"]),
        ]

    async def _announce(self, request: Request) -> Response:
        try:
            asked = Announcement.model_validate_json(await request.body())
        except ValidationError:
            raise WireError("malformed Announcement") from None
        silo = request.scope[MEMBER].name
        have = await run_in_threadpool(self.road.announce, silo, asked.run, asked.step, asked.buffer)
        return JSONResponse(Standing(have_bytes=have).model_dump())

    async def _put(self, request: Request) -> Response:
        silo, where = request.scope[MEMBER].name, request.path_params
        signed, offset = request.scope[SIGNED], _offset(request)
        step = _number(where["step"], "step")
        upload = await run_in_threadpool(self.road.upload, silo, where["run"], step, offset)
        if signed.body_size_bytes != upload.size_bytes:
            raise WireError(f"a body of {signed.body_size_bytes} bytes, where {upload.size_bytes} were announced")
        if upload.digest is not None and signed.body_sha256 != upload.digest:
            raise WireError("the body that was signed is not the piece that was announced")
        have = await self._take(request, upload, offset, lambda: self.registry.seen(silo))
        return JSONResponse(Standing(have_bytes=have).model_dump())

    async def _take(self, request: Request, upload: Upload, have: int, seen: Callable[[], None]) -> int:
        """Writes the body as it comes; what came before a connection broke stays."""
        parts: list[bytes] = []
        held_bytes, room = 0, upload.size_bytes
        try:
            async for chunk in request.stream():
                if len(chunk) > room:
                    raise WireError("the body is longer than its piece")
                room -= len(chunk)
                parts.append(chunk)
                held_bytes += len(chunk)
                if held_bytes >= _CHUNK_BYTES:
                    have = await run_in_threadpool(upload.write, *parts)
                    parts, held_bytes = [], 0
                    seen()
        except ClientDisconnect:
            room = -1
        if parts:
            have = await run_in_threadpool(upload.write, *parts)
        if room:
            raise WireError("the body is shorter than its piece")
        return have

    async def _get(self, request: Request) -> Response:
        where, offset = request.path_params, _offset(request)
        silo = request.scope[MEMBER].name
        region, transfer = self.road.download(silo, where["run"], where["digest"], offset)
        try:
            file = region.path.open("rb", buffering=0)
        except FileNotFoundError:
            raise ConflictError("that buffer is gone", hint="Its round is over.") from None
        length = str(region.size_bytes - offset)
        body = self._read(file, region, transfer, offset, lambda: self.registry.seen(silo))
        return StreamingResponse(body, media_type="application/octet-stream", headers={"content-length": length})

    async def _read(
        self, file: FileIO, region: Region, transfer: Transfer, offset: int, seen: Callable[[], None]
    ) -> AsyncIterator[bytes]:
        """One open file for all of it: whatever becomes of its name meanwhile, these are the bytes that were asked
        for."""
        with file:
            while offset < region.size_bytes:
                size_bytes = min(_CHUNK_BYTES, region.size_bytes - offset)
                chunk = await run_in_threadpool(os.pread, file.fileno(), size_bytes, region.offset + offset)
                if not chunk:
                    raise OSError(f"{region.path} has become shorter")
                yield chunk
                offset += len(chunk)
                transfer.move_to(offset)
                seen()


def _offset(request: Request) -> int:
    return _number(request.query_params.get("offset", "0"), "offset")


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise WireError(f"the {what} is not a number")
    return int(text)
