"""Large buffers as messages name them: by their pieces' digests, and in which precision their numbers travel.

A buffer of more than `INLINE_BYTES` does not ride in its message. The message carries a `BufferRef`, and the bytes take
a road of their own in pieces, each of which is verified by itself, so that what breaks goes on where it broke.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from fedplat.params import Vector
from fedplat.spec.model import Precision

PIECE_BYTES = 4 << 20
INLINE_BYTES = 1 << 20

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class BufferRef(BaseModel):
    """The name of a buffer: its length, and the SHA-256 of each `PIECE_BYTES` of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_bytes: Annotated[int, Field(gt=0, lt=2**50)]
    pieces: tuple[Digest, ...] = Field(min_length=1, max_length=1_000_000)

    @model_validator(mode="after")
    def _all_pieces(self) -> Self:
        if len(self.pieces) != num_pieces(self.size_bytes):
            raise ValueError(f"{self.size_bytes} bytes are {num_pieces(self.size_bytes)} pieces")
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the length and the pieces' digests: a tree of depth one."""
        tree = hashlib.sha256(self.size_bytes.to_bytes(8, "big"))
        for piece in self.pieces:
            tree.update(bytes.fromhex(piece))
        return tree.hexdigest()


def num_pieces(size_bytes: int) -> int:
    """How many pieces a buffer has; the last may be shorter."""
    return -(-size_bytes // PIECE_BYTES)


class PieceHasher:
    """Learns a buffer's name from its bytes as they pass."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._open = hashlib.sha256()
        self._size_bytes = 0

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes, any number of them."""
        rest = memoryview(data).cast("B")
        while rest:
            room = PIECE_BYTES - self._size_bytes % PIECE_BYTES
            part, rest = rest[:room], rest[room:]
            self._open.update(part)
            self._size_bytes += len(part)
            if len(part) == room:
                self._close_piece()

    def ref(self) -> BufferRef:
        """The name of all bytes so far; no more may follow. ValueError if there were none."""
        if self._size_bytes % PIECE_BYTES:
            self._close_piece()
        return BufferRef(size_bytes=self._size_bytes, pieces=tuple(self._pieces))

    def _close_piece(self) -> None:
        self._pieces.append(self._open.hexdigest())
        self._open = hashlib.sha256()


_FLOAT32 = np.dtype("<f4")
_QUIET_NAN = 0x7FC0


def to_bytes(vector: npt.NDArray[np.floating], precision: Precision) -> memoryview:
    """The numbers as raw little-endian bytes; not copied where they are that already."""
    floats = np.ascontiguousarray(vector, dtype=_FLOAT32)
    if precision is Precision.FP32:
        return floats.view(np.uint8).data
    bits = floats.view(np.uint32)
    halves = ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype("<u2")
    halves[np.isnan(floats)] = _QUIET_NAN
    return halves.view(np.uint8).data


def to_vector(data: bytes | memoryview, precision: Precision) -> Vector:
    """What `to_bytes` wrote, as flat float32; not copied in full precision. ValueError for half a number."""
    if precision is Precision.FP32:
        return np.frombuffer(data, dtype=_FLOAT32)
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
