"""Masked vectors: an update as whole numbers in the spool, and as noise on its way to the server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedplat.bufferfiles import Region
from fedplat.canonical import canonical_json, sha256_hex
from fedplat.params import Vector
from fedplat.secagg.figures import Figures, FiguresFormat
from fedplat.secagg.fixedpoint import VectorFormat, quantise
from fedplat.secagg.prg import CHUNK, Stream, Words, apply
from fedplat.wire.messages import Masking

_BLOCK = 8 * CHUNK  # coordinates: a megabyte, which stays in the cache
_WORD_BYTES = 4


def quantised(
    update: Vector,
    weight: int,
    vector: VectorFormat,
    figures: FiguresFormat,
    rounding_key: bytes,
    hiding_key: bytes,
    complete: Callable[[int, float], Figures],
) -> Iterator[memoryview]:
    """The vector in blocks: the update times its weight (in parts of the limit), then the figures, which `complete`
    makes from the number of clipped coordinates and the weighted norm. `hiding_key`: of the noise in place of sums that
    are not given, another for each vector. RefusedError for what cannot be masked."""
    num_clipped, square = 0, 0.0
    for start in range(0, update.size, _BLOCK):
        block = update[start : start + _BLOCK]
        out = np.empty(block.size, dtype=np.uint32)
        bound = vector.segments[0].bound
        assert bound is not None
        num_clipped += quantise(block, out, bound=bound, limit=weight, rounding_key=rounding_key, offset=start)
        square += _square(block)
        yield out.data
    norm = math.sqrt(square) * (weight / vector.limit)
    yield figures.encode(complete(num_clipped, norm), vector.limit, hiding_key).data


def masked(region: Region, masks: Sequence[Stream]) -> Iterator[memoryview]:
    """The vector in the spool with its masks on, in blocks."""
    for start in range(0, region.size_bytes, _BLOCK * _WORD_BYTES):
        block = np.frombuffer(bytearray(region.read(start, _BLOCK * _WORD_BYTES)), dtype="<u4")
        apply(block, masks, start // _WORD_BYTES)
        yield block.data


def vector_digest(masking: Masking, vector: VectorFormat) -> str:
    """Names how an update is made into whole numbers: another way is another update."""
    return sha256_hex(canonical_json([*vector.fields(), masking.max_weight]))


def words_of(region: Region) -> Words:
    """The vector in the spool, read when it is looked at."""
    return np.memmap(region.path, dtype="<u4", mode="r", offset=region.offset, shape=region.size_bytes // _WORD_BYTES)


def _square(block: Vector) -> float:
    with np.errstate(over="ignore"):
        quick = float(np.dot(block, block))
    return quick if math.isfinite(quick) else float(np.square(block, dtype=np.float64).sum())
