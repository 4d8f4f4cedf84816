"""Flat vectors that lie in files and are read block by block: what a round needs in memory does not grow with the
model or with the number of silos."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from fedplat.bufferfiles import Region
from fedplat.params import Vector
from fedplat.spec.model import Precision
from fedplat.wire.buffers import to_vector

BLOCK = 250_000  # elements: a few megabytes at a time, which stay in the cache
Item = TypeVar("Item")


@dataclass(frozen=True)
class StoredVector:
    """Numbers in a file, read as float32. Not mapped into memory: what is read can be given back."""

    region: Region
    precision: Precision = Precision.FP32

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.region.size_bytes // self.precision.item_bytes

    def read(self, start: int, stop: int) -> Vector:
        """The elements from `start` to `stop`. Raises OSError, also for a file that has become shorter."""
        width = self.precision.item_bytes
        data = self.region.read(start * width, (stop - start) * width)
        if len(data) != (stop - start) * width:
            raise OSError(f"{self.region.path} has become shorter")
        return to_vector(data, self.precision)

    def blocks(self) -> Iterator[Vector]:
        """All elements, in order."""
        return (self.read(block.start, block.stop) for block in blocks_of(self.size))

    def vector(self) -> Vector:
        """All elements at once."""
        return self.read(0, self.size)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each made in another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


def blocks_of(size: int) -> Iterator[slice]:
    """`size` elements in slices of `BLOCK`."""
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))
