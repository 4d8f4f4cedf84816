"""Numbers as integers modulo 2^32, so that masks cancel exactly.

A value of at most the bound c becomes an integer of at most M = floor((2^31 - 1) / n_max): the sum over n_max silos
fits a signed 32-bit integer, also when all of them are at the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedplat.errors import WireError
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.prg import CHUNK, Keystream, Words, new_scratch, pieces
from fedplat.spec.secure import MAX_SILOS

Floats: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """A stretch of the vector: reals in [-bound, bound], or (`bound` None) exact counts."""

    size: int
    bound: float | None

    def __post_init__(self) -> None:
        if self.size < 0 or (self.bound is not None and not 0 < self.bound < math.inf):
            raise WireError(f"a segment of {self.size} coordinates with bound {self.bound} cannot be masked")


@dataclass(frozen=True)
class VectorFormat:
    """What the masked vector holds, in order: the update first, then weight, metric sums and counts."""

    n_max: int
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not 2 <= self.n_max <= MAX_SILOS:
            raise WireError(f"n_max is {self.n_max}: secure aggregation works with 2 to {MAX_SILOS} silos")

    @property
    def limit(self) -> int:
        """M: the largest integer that one silo may put into a coordinate."""
        return limit_for(self.n_max)

    @property
    def length(self) -> int:
        """Coordinates of the whole vector."""
        return sum(segment.size for segment in self.segments)

    def fields(self) -> tuple[int | str, ...]:
        """What all silos must agree on, for the step's context."""
        bounds = [part for s in self.segments for part in (s.size, "count" if s.bound is None else s.bound.hex())]
        return (self.length, self.n_max, len(self.segments), *bounds)


def limit_for(n_max: int) -> int:
    """M = floor((2^31 - 1) / n_max)."""
    return (2**31 - 1) // n_max


def quantise(values: Floats, out: Words, *, bound: float, limit: int, rounding_key: bytes, offset: int) -> int:
    """`out = min(M, floor(clip(x/c, -1, 1) M + u))` modulo 2^32, u uniform in [0, 1); returns how many were clipped.

    `offset` is the coordinate of the first value in the whole vector. `out` may be the memory of a float32 `values`.
    Raises RefusedError for values that are not finite.
    """
    rounding = Keystream(rounding_key)
    scratch, work, spare = new_scratch(), np.empty(CHUNK), np.empty(CHUNK)
    num_clipped = 0
    for start, stop in pieces(offset, len(values)):
        part = values[start:stop]
        x, v = work[: len(part)], spare[: len(part)]
        largest = max(-float(part.min()), float(part.max()))
        if not math.isfinite(largest):
            raise RefusedError(Refusal.UPDATE_NOT_FINITE)
        if largest > bound:
            num_clipped += _count_outside(part, bound)
        np.copyto(x, part)
        x *= limit / bound
        np.copyto(v, rounding.words(scratch, offset + start, len(part)).view(np.int32))
        v *= 2.0**-32
        _round(x, v)
        if largest / bound * limit > limit - 1:
            np.clip(x, -limit, limit, out=x)
        np.copyto(out[start:stop].view(np.int32), x, casting="unsafe")
    return num_clipped


def dequantise(total: Words, *, bound: float, limit: int) -> npt.NDArray[np.float64]:
    """The sum of reals that a sum of quantised values stands for: within n c / M of the sum of the clipped values."""
    return np.multiply(total.view(np.int32), bound / limit, dtype=np.float64)


def counts_to_words(counts: Sequence[int], limit: int, *, signed: bool = False) -> Words:
    """Exact counts, as coordinates. Raises RefusedError for one that is above M, or negative where it is not `signed`;
    or below -M where it is."""
    least = -limit if signed else 0
    if not all(least <= count <= limit for count in counts):
        raise RefusedError(Refusal.COUNT_TOO_LARGE)
    return np.array(counts, dtype=np.int64).astype(np.uint32)


def words_to_counts(total: Words, *, signed: bool = False) -> list[int]:
    """The summed counts. Raises WireError for a negative one that is not `signed`, which no honest silo can cause."""
    counts: list[int] = total.view(np.int32).tolist()
    if not signed and any(count < 0 for count in counts):
        raise WireError("a summed count is negative", hint="A silo of this cohort sent something else than a count.")
    return counts


def _count_outside(part: Floats, bound: float) -> int:
    return int(np.count_nonzero(part > bound) + np.count_nonzero(part < -bound))


def _round(x: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> None:
    """floor(x + u) for v = u - 1/2 in [-1/2, 1/2), which signed words give more quickly than u."""
    x += v
    np.rint(x, out=x)
