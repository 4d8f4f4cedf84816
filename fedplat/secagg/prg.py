"""Pseudo-random words: an AES-256-CTR keystream as little-endian uint32, from any coordinate on.

The blocks of chunk k have the counters k (12 bytes) || 2, 3, ... (4 bytes): that is what AES-256-GCM encrypts zeros to
under the nonce k, and by way of GCM, since OpenSSL does it at twice the speed of CTR alone; the tag is not used. A key
is used for one stream, so its chunks are counted from zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Words = npt.NDArray[np.uint32]
SEED_BYTES = 32
CHUNK = 1 << 15
"""Coordinates of a chunk; all silos and the server must have the same. Vector, keystream and zeros together stay in a
core's cache."""
_NONCE_BYTES = 12
_TAG_BYTES = 16
_WORD_BYTES = 4
_ZEROS = memoryview(bytes(CHUNK * _WORD_BYTES))


@dataclass(frozen=True)
class Stream:
    """A keystream to add (`sign` 1) or to subtract (-1)."""

    seed: bytes = field(repr=False)
    sign: Literal[1, -1]


class Keystream:
    """The words of `seed`."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._cipher = AESGCM(seed)

    def words(self, scratch: memoryview, offset: int, num_words: int) -> Words:
        """The words from coordinate `offset` on, all of one chunk, as a view of `scratch` (see `new_scratch`)."""
        chunk, begin = divmod(offset, CHUNK)
        size_bytes = (begin + num_words) * _WORD_BYTES
        nonce = chunk.to_bytes(_NONCE_BYTES, "big")
        self._cipher.encrypt_into(nonce, _ZEROS[:size_bytes], None, scratch[: size_bytes + _TAG_BYTES])
        return np.frombuffer(scratch, "<u4", num_words, begin * _WORD_BYTES)

    def read(self, num_bytes: int) -> bytes:
        """The first bytes of the stream."""
        scratch, num_words = new_scratch(), -(-num_bytes // _WORD_BYTES)
        parts = [self.words(scratch, a, b - a).tobytes() for a, b in pieces(0, num_words)]
        return b"".join(parts)[:num_bytes]


def new_scratch() -> memoryview:
    """Room for one chunk of keystream."""
    return memoryview(bytearray(CHUNK * _WORD_BYTES + _TAG_BYTES))


def pieces(offset: int, num_words: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the parts, of one chunk each, of a vector of so many words from coordinate `offset` on."""
    start = 0
    while start < num_words:
        stop = min(num_words, start + CHUNK - (offset + start) % CHUNK)
        yield start, stop
        start = stop


def apply(vector: Words, streams: Sequence[Stream], offset: int = 0) -> None:
    """Adds and subtracts the streams in place, modulo 2^32. `vector` is the part from coordinate `offset` on."""
    scratch = new_scratch()
    opened = [(Keystream(s.seed), np.add if s.sign > 0 else np.subtract) for s in streams]
    for start, stop in pieces(offset, len(vector)):
        part = vector[start:stop]
        for keystream, combine in opened:
            combine(part, keystream.words(scratch, offset + start, stop - start), out=part)
