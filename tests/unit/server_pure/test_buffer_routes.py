"""The routes of large buffers without a network: what a connection may do in the middle of a body."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from starlette.applications import Starlette
from starlette.types import Message

from fedplat.bufferfiles import Region
from fedplat.errors import FedplatError
from fedplat.identity import SignedRequest, new_key
from fedplat.wire.buffers import PIECE_BYTES, BufferRef, PieceHasher
from fedplat.wire.http import BUFFERS
from fedplat_server.api.buffers import BufferRoutes
from fedplat_server.api.guard import MEMBER, SIGNED
from fedplat_server.api.routes import _problem
from fedplat_server.registry import Member, Registry
from fedplat_server.road import Road, Upload

DATA = bytes(range(256)) * (PIECE_BYTES // 256) + b"the last piece"
FIRST_PIECE = hashlib.sha256(DATA[:PIECE_BYTES]).hexdigest()
MEMBER_A = Member("a", 1, "", new_key().public_key())


def named(data: bytes) -> BufferRef:
    hasher = PieceHasher()
    hasher.update(data)
    return hasher.ref()


class Scene:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.road = Road(on_trouble=lambda: None)
        self.road.expect("run", 1, "a", len(DATA), folder / "s" / "a.incoming", folder / "s" / "a.buffer")
        self.weights = folder / "weights"
        self.weights.write_bytes(b"head" + DATA)
        self.road.offer("run", named(DATA), Region(self.weights, 4, len(DATA)), frozenset({"a"}))
        routes = BufferRoutes(self.road, Registry()).routes()
        self.app = Starlette(routes=routes, exception_handlers={FedplatError: _problem})

    def ask(
        self,
        method: str,
        path: str,
        messages: Iterable[Message] = (),
        size_bytes: int = 0,
        on_chunk: Callable[[], object] = lambda: None,
    ) -> tuple[int, bytes]:
        """One request, whose body comes as these messages; `on_chunk` is called for each part of the answer."""
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [],
            "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            MEMBER: MEMBER_A,
            SIGNED: SignedRequest("a", 0, "", size_bytes, FIRST_PIECE, b""),
        }
        status, parts, source = [0], list[bytes](), iter(messages)

        async def receive() -> Message:
            found = next(source, None)
            if found is None:
                await anyio.sleep_forever()
            assert found is not None
            return found

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            else:
                parts.append(message.get("body", b""))
                on_chunk()

        anyio.run(self.app, scope, receive, send)
        return status[0], b"".join(parts)

    def announce(self) -> int:
        return self.road.announce("a", "run", 1, named(DATA))

    def put(self, *bodies: bytes, then: Message | None = None, offset: int = 0) -> tuple[int, bytes]:
        """A piece in these chunks, and perhaps something else in the place of its end."""
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
        messages.append(then or {"type": "http.request", "body": b"", "more_body": False})
        return self.ask("PUT", f"{BUFFERS}/run/1?offset={offset}", messages, PIECE_BYTES)

    def get(self, offset: int = 0, on_chunk: Callable[[], object] = lambda: None) -> tuple[int, bytes]:
        return self.ask("GET", f"{BUFFERS}/run/{named(DATA).digest}?offset={offset}", on_chunk=on_chunk)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.road.close("run")


def test_a_piece_in_chunks_of_any_size_is_written_as_it_comes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.announce()
    sizes: list[int] = []
    real = Upload.write

    def write(upload: Upload, *parts: bytes) -> int:
        sizes.append(sum(map(len, parts)))
        return real(upload, *parts)

    monkeypatch.setattr(Upload, "write", write)
    piece, cuts = DATA[:PIECE_BYTES], [0, 1, 1, 700_000, 700_001, 3_000_000, PIECE_BYTES]
    status, answer = scene.put(*(piece[a:b] for a, b in pairwise(cuts)))
    assert (status, answer) == (200, b'{"have_bytes":%d}' % PIECE_BYTES)
    assert sum(sizes) == PIECE_BYTES
    assert len(sizes) > 1
    assert (scene.folder / "s" / "a.incoming").read_bytes() == piece


@pytest.mark.parametrize("there", [0, 1, 700_000, PIECE_BYTES - 1])
def test_what_came_before_a_connection_broke_stays(scene: Scene, there: int) -> None:
    scene.announce()
    status, _ = scene.put(DATA[:there], then={"type": "http.disconnect"})
    assert status == 400, "nobody hears it"
    assert scene.announce() == there


def test_a_body_that_is_longer_than_was_signed_ends_there(scene: Scene) -> None:
    scene.announce()
    status, answer = scene.put(DATA[: PIECE_BYTES - 1], b"xy")
    assert (status, b"longer" in answer) == (400, True)
    assert scene.announce() <= PIECE_BYTES - 1


def test_a_body_that_is_shorter_than_was_signed_is_said(scene: Scene) -> None:
    scene.announce()
    status, answer = scene.put(DATA[: PIECE_BYTES - 1])
    assert (status, b"shorter" in answer) == (400, True)
    assert scene.announce() == PIECE_BYTES - 1


def test_a_step_that_ends_in_the_middle_of_a_body_ends_it(scene: Scene) -> None:
    scene.announce()

    def bodies() -> Iterator[Message]:
        for start in range(0, PIECE_BYTES, 1 << 20):
            if start == 2 << 20:
                scene.road.close("run")
            yield {"type": "http.request", "body": DATA[start : start + (1 << 20)], "more_body": True}

    status, answer = scene.ask("PUT", f"{BUFFERS}/run/1?offset=0", bodies(), PIECE_BYTES)
    assert (status, b"damaged" in answer) == (400, True)
    assert (scene.folder / "s" / "a.incoming").stat().st_size == 2 << 20


@pytest.mark.parametrize("becomes", ["removed", "replaced"])
def test_a_download_that_has_begun_ends_with_the_bytes_that_it_began_with(scene: Scene, becomes: str) -> None:
    """The round ends meanwhile: its checkpoint is pruned, or the next round's weights take the place."""

    def change() -> None:
        scene.road.close("run")
        other = scene.weights.with_name("other")
        other.write_bytes(bytes(4 + len(DATA)))
        other.replace(scene.weights) if becomes == "replaced" else scene.weights.unlink(missing_ok=True)

    assert scene.get(on_chunk=change) == (200, DATA)
    assert scene.get()[0] == 409


def test_weights_that_are_gone_are_a_round_that_is_over(scene: Scene) -> None:
    scene.weights.unlink()
    status, answer = scene.get()
    assert (status, b"conflict" in answer) == (409, True)


def test_weights_that_have_become_shorter_do_not_keep_a_thread_for_ever(scene: Scene) -> None:
    with scene.weights.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match="has become shorter"):
        scene.get()


def test_transfers_show_how_far_they_have_come(scene: Scene) -> None:
    scene.announce()
    scene.put(DATA[:1000], then={"type": "http.disconnect"})
    scene.get(offset=7)
    up, down = scene.road.transfers("run")
    assert (up.upload, up.done_bytes, up.total_bytes) == (True, 1000, len(DATA))
    assert (down.upload, down.done_bytes, down.total_bytes) == (False, len(DATA), len(DATA))
