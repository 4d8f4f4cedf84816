"""Pseudo-random words: the AES-256-CTR keystream as little-endian uint32, from any coordinate on.

A key is used for one stream, so the counter starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

Words = npt.NDArray[np.uint32]
SEED_BYTES = 32
CHUNK = 1 << 15
"""Coordinates that are worked on at a time: vector, keystream and zeros together stay in a core's cache."""
_BLOCK_BYTES = 16
_WORD_BYTES = 4
_ZEROS = memoryview(bytes(CHUNK * _WORD_BYTES))


@dataclass(frozen=True)
class Stream:
    """A keystream to add (`sign` 1) or to subtract (-1)."""

    seed: bytes = field(repr=False)
    sign: Literal[1, -1]


class Keystream:
    """The words of `seed` from coordinate `offset` on."""

    def __init__(self, seed: bytes, offset: int = 0) -> None:
        block, skipped_bytes = divmod(offset * _WORD_BYTES, _BLOCK_BYTES)
        self._cipher = Cipher(AES256(seed), CTR(block.to_bytes(_BLOCK_BYTES, "big"))).encryptor()
        self._cipher.update(bytes(skipped_bytes))

    def fill(self, scratch: bytearray, num_words: int) -> Words:
        """The next words, at most CHUNK, as a view of `scratch` (see `new_scratch`)."""
        self._cipher.update_into(_ZEROS[: num_words * _WORD_BYTES], scratch)
        return np.frombuffer(scratch, dtype="<u4", count=num_words)

    def read(self, num_bytes: int) -> bytes:
        """The next bytes of the stream."""
        return self._cipher.update(bytes(num_bytes))


def new_scratch() -> bytearray:
    """Room for one chunk of keystream. The cipher asks for a block more than it writes."""
    return bytearray(CHUNK * _WORD_BYTES + _BLOCK_BYTES)


def apply(vector: Words, streams: Sequence[Stream], offset: int = 0) -> None:
    """Adds and subtracts the streams in place, modulo 2^32. `vector` is the part from coordinate `offset` on."""
    scratch = new_scratch()
    opened = [(Keystream(s.seed, offset), np.add if s.sign > 0 else np.subtract) for s in streams]
    for start in range(0, len(vector), CHUNK):
        chunk = vector[start : start + CHUNK]
        for keystream, combine in opened:
            combine(chunk, keystream.fill(scratch, len(chunk)), out=chunk)
