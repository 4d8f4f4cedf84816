"""fedplat, whose server also writes down every byte that silos send: python recording_server.py FILE COMMAND..."""

from __future__ import annotations

import sys
from pathlib import Path

from starlette.types import Message, Receive, Scope, Send

from fedplat.cli import main
from fedplat_server import app
from fedplat_server.api.guard import Guard

FILE = Path(sys.argv.pop(1))


class RecordingGuard(Guard):
    """The guard, with an ear at the door."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def heard() -> Message:
            message = await receive()
            _write(message.get("body", b""))
            return message

        _write(scope.get("path", "").encode(), scope.get("query_string", b""), *sum(scope.get("headers", ()), ()))
        await super().__call__(scope, heard, send)


def _write(*parts: bytes) -> None:
    with FILE.open("ab") as file:
        file.write(b"\n".join(parts) + b"\n")


app.Guard = RecordingGuard  # type: ignore[misc]
main()
