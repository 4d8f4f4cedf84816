"""A run's staging folder, a road to it, and the bytes that travel: in pieces so small that many fit into a test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from fedplat.wire.buffers import BufferRef, PieceHasher
from fedplat_server.road import Road, Upload

PIECE = 64
DATA = np.random.default_rng(0).bytes(5 * PIECE + 17)


def named(data: bytes) -> BufferRef:
    hasher = PieceHasher()
    hasher.update(data)
    return hasher.ref()


class Scene:
    """The folder, and the process of the server that looks at it. The silo is honest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "staging"
        self.alarms = 0
        self.restart()

    def restart(self, size_bytes: int = len(DATA)) -> None:
        """Another process: nothing is left but what is on disk."""
        self.road = Road(on_trouble=self._alarm)
        self.expect("a", size_bytes)

    def _alarm(self) -> None:
        self.alarms += 1

    def expect(self, silo: str, size_bytes: int = len(DATA), step: int = 3) -> None:
        incoming, target = self.folder / f"{silo}.incoming", self.folder / f"{silo}.buffer"
        self.road.expect("run", step, silo, size_bytes, incoming, target)

    def announce(self, data: bytes = DATA, silo: str = "a", step: int = 3) -> int:
        return self.road.announce(silo, "run", step, named(data))

    def upload(self, offset: int, silo: str = "a", step: int = 3) -> Upload:
        return self.road.upload(silo, "run", step, offset)

    def send(self, data: bytes = DATA, silo: str = "a", start: int = 0, stop: int | None = None) -> int:
        """What a silo does after its announcement, up to byte `stop`; returns the last standing."""
        have, end = start, len(data) if stop is None else stop
        while have < end:
            upload = self.upload(have, silo)
            assert upload.size_bytes == min(len(data), (have // PIECE + 1) * PIECE) - have
            body = data[have : have + upload.size_bytes]
            assert upload.digest in (None, hashlib.sha256(body).hexdigest())
            assert (upload.digest is None) == bool(have % PIECE)
            have = upload.write(data[have : min(end, have + upload.size_bytes)])
        return have

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}
