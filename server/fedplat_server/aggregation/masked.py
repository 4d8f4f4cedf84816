"""The weighted mean of masked updates: their sum modulo 2^32, with the masks that are left taken off.

What single uploads hold is noise; nothing of it is looked at by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fedplat.bufferfiles import Region
from fedplat.params import Vector
from fedplat.secagg.figures import FiguresFormat
from fedplat.secagg.fixedpoint import VectorFormat, dequantise
from fedplat.secagg.prg import Stream, Words, apply
from fedplat_server.vectors import blocks_of

WORD_BYTES = 4


def sum_of(uploads: Sequence[bytes], streams: Sequence[Stream]) -> Words:
    """The sum of whole uploads, masks taken off."""
    total = np.zeros(len(uploads[0]) // WORD_BYTES, dtype=np.uint32)
    for upload in uploads:
        total += np.frombuffer(upload, dtype="<u4")
    apply(total, streams)
    return total


class MaskedMean:
    """The mean over the uploads of a cohort; `figures` are those of all of them together.

    WireError if the figures make no sense: somebody has sent something else than was agreed on.
    """

    def __init__(
        self,
        uploads: Sequence[Region],
        streams: Sequence[Stream],
        vector: VectorFormat,
        figures: FiguresFormat,
        max_weight: float,
    ) -> None:
        self._uploads = uploads
        self._streams = streams
        self._limit = vector.limit
        self._size = vector.length - figures.length
        self._bound = vector.segments[0].bound if self._size else None
        self.figures = figures.decode(self._sum(self._size, vector.length), len(uploads))
        self._share = self.figures.weight / self._limit
        self.total_weight = self._share * max_weight
        self._squares: list[float] = []

    @property
    def norm(self) -> float:
        """Of the mean, Euclidean; once all `blocks` have been taken."""
        return math.sqrt(math.fsum(self._squares))

    @property
    def divergence(self) -> float | None:
        """|sum w u| / sum w |u|, as `WeightedMean.divergence`."""
        return self.norm * self._share / self.figures.norm if self.figures.norm > 0 else None

    def blocks(self) -> Iterator[tuple[slice, Vector]]:
        """The mean, float32 rounded once from float64, with where each block lies. OSError if one cannot be read."""
        assert self._bound is not None
        for block in blocks_of(self._size):
            total = dequantise(self._sum(block.start, block.stop), bound=self._bound, limit=self._limit)
            total /= self._share
            self._squares.append(float(np.square(total).sum()))
            yield block, total.astype(np.float32)

    def _sum(self, start: int, stop: int) -> Words:
        total = np.zeros(stop - start, dtype=np.uint32)
        for region in self._uploads:
            total += _words(region, start, stop)
        apply(total, self._streams, start)
        return total


def _words(region: Region, start: int, stop: int) -> Words:
    data = region.read(start * WORD_BYTES, (stop - start) * WORD_BYTES)
    if len(data) != (stop - start) * WORD_BYTES:
        raise OSError(f"{region.path} has become shorter")
    return np.frombuffer(data, dtype="<u4")
