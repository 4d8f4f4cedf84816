"""Large buffers on disk: where they lie, how they are written, and how they arrive in several attempts."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedplat.durable import AtomicFile, filesystem, sync_folder
from fedplat.errors import WireError
from fedplat.wire.buffers import PIECE_BYTES, BufferRef, PieceHasher


class DamagedPieceError(WireError):
    """A piece that is not the one announced; what there was of it is dropped."""


@dataclass(frozen=True)
class Region:
    """A buffer in a file: `size_bytes` from `offset` on."""

    path: Path
    offset: int
    size_bytes: int

    def read(self, start: int, size_bytes: int) -> bytes:
        """Bytes from `start` of the buffer on; fewer at its end. Raises OSError."""
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), max(0, min(size_bytes, self.size_bytes - start)), self.offset + start)

    def is_good(self, ref: BufferRef) -> bool:
        """Whether it is there and every piece is the one that `ref` names."""
        if ref.size_bytes != self.size_bytes:
            return False
        try:
            found = (self.read(i * PIECE_BYTES, PIECE_BYTES) for i in range(len(ref.pieces)))
            return all(_is_piece(data, piece) for data, piece in zip(found, ref.pieces, strict=True))
        except OSError:
            return False


def write_buffer(path: Path, chunks: Iterable[bytes | memoryview]) -> BufferRef:
    """Replaces `path` by the chunks, which must not be empty. A kill cannot undo it; a power cut can, before
    `durable.sync_files`. Raises OSError."""
    hasher = PieceHasher()
    with AtomicFile(path) as file:
        for chunk in chunks:
            file.write(chunk)
            hasher.update(chunk)
        file.publish()
    return hasher.ref()


def write_scratch(path: Path, chunks: Iterable[bytes | memoryview]) -> BufferRef:
    """Replaces `path` by the chunks, which must not be empty and can be made again: the disk is not asked to keep them.
    Raises OSError."""
    hasher = PieceHasher()
    fd = filesystem.reopen(path, 0o600)
    try:
        filesystem.truncate(fd, 0)
        for chunk in chunks:
            rest = memoryview(chunk).cast("B")
            hasher.update(rest)
            while rest:
                rest = rest[filesystem.write(fd, rest) :]
    finally:
        os.close(fd)
    return hasher.ref()


class Incoming:
    """A buffer that arrives, perhaps in several attempts and over restarts of this process.

    What is in the file from before counts as far as its pieces are the announced ones; of the piece that is open the
    bytes there are kept too, and verified when it is whole. Not thread-safe.
    """

    def __init__(self, path: Path, ref: BufferRef) -> None:
        """Opens the file or makes it. Raises OSError."""
        self.ref = ref
        self._path = path
        self._fd = filesystem.reopen(path, 0o600)
        self._open = hashlib.sha256()
        try:
            self.have_bytes = self._take_stock()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_complete(self) -> bool:
        """Whether every byte is there and verified."""
        return self.have_bytes == self.ref.size_bytes

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes. DamagedPieceError if a piece is not the announced one; WireError if there are too many."""
        rest = memoryview(data).cast("B")
        if len(rest) > self.ref.size_bytes - self.have_bytes:
            raise WireError(f"a buffer of {self.ref.size_bytes} bytes does not end there")
        while rest:
            room = self._piece_end() - self.have_bytes
            part, rest = rest[:room], rest[room:]
            self._append(part)
            if len(part) == room:
                self._close_piece()

    def commit(self, target: Path, *, durable: bool) -> None:
        """Gives a complete buffer its name; `durable`: on disk when this returns."""
        if not self.is_complete:
            raise WireError(f"{self.have_bytes} of {self.ref.size_bytes} bytes are there")
        if durable:
            filesystem.fsync(self._fd)
        self.close()
        filesystem.rename(self._path, target)
        if durable:
            sync_folder(target.parent)

    def close(self) -> None:
        """What is there stays for the next attempt."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _piece_end(self) -> int:
        return min(self.ref.size_bytes, (self.have_bytes // PIECE_BYTES + 1) * PIECE_BYTES)

    def _append(self, part: memoryview) -> None:
        self._open.update(part)
        while part:
            written = filesystem.write(self._fd, part)
            part = part[written:]
            self.have_bytes += written

    def _close_piece(self) -> None:
        index = (self.have_bytes - 1) // PIECE_BYTES
        found, self._open = self._open.hexdigest(), hashlib.sha256()
        if not hmac.compare_digest(found, self.ref.pieces[index]):
            self._cut(index * PIECE_BYTES)
            raise DamagedPieceError(f"piece {index + 1} of {len(self.ref.pieces)} was damaged on its way")

    def _cut(self, size_bytes: int) -> None:
        filesystem.truncate(self._fd, size_bytes)
        os.lseek(self._fd, size_bytes, os.SEEK_SET)
        self.have_bytes = size_bytes

    def _take_stock(self) -> int:
        """Verifies what the file has; cuts it before the first byte that is not known to be right."""
        size = os.fstat(self._fd).st_size
        good = 0
        for piece in self.ref.pieces:
            whole = min(PIECE_BYTES, self.ref.size_bytes - good)
            data = os.pread(self._fd, whole, good)
            if len(data) < whole:
                self._open.update(data)
                good += len(data)
                break
            if not _is_piece(data, piece):
                break
            good += whole
        if good != size:
            filesystem.truncate(self._fd, good)
        os.lseek(self._fd, good, os.SEEK_SET)
        return good


def _is_piece(data: bytes, digest: str) -> bool:
    return hmac.compare_digest(hashlib.sha256(data).hexdigest(), digest)
