"""The weighted mean of updates that the server can see.

A block of elements at a time, all silos in roster order, in float64: the result depends on the order of the roster,
never on who came first, and the memory needed on neither the number of elements nor that of silos.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedplat.errors import LayoutError
from fedplat.params import Vector
from fedplat_server.vectors import BLOCK, StoredVector, blocks_of

_Block = npt.NDArray[np.float64]


class UpdateError(LayoutError):
    """An update that cannot enter the mean. `silo` is who sent it."""

    def __init__(self, silo: str, problem: str) -> None:
        super().__init__(
            f"the update of silo {silo!r} {problem}",
            hint="Look at that silo's log; a lower learning rate or gradient clipping keeps values finite.",
        )
        self.silo = silo


@dataclass(frozen=True)
class Update:
    """What one silo adds to the mean."""

    silo: str
    weight: float
    vector: StoredVector


class WeightedMean:
    """The mean of updates, in the order given. Its norms are known once all `blocks` have been taken.

    UpdateError if an update has another length, or a weight that is not positive.
    """

    def __init__(self, updates: Sequence[Update]) -> None:
        if not updates:
            raise ValueError("there is no mean of no updates")
        self._updates = updates
        self._size = updates[0].vector.size
        for update in updates:
            _check(update, self._size)
        self.total_weight = math.fsum(update.weight for update in updates)
        self._shares = [update.weight / self.total_weight for update in updates]
        self._squares: list[float] = []
        self._update_squares: list[list[float]] = [[] for _ in updates]

    @property
    def norm(self) -> float:
        """Of the mean, Euclidean."""
        return math.sqrt(math.fsum(self._squares))

    @property
    def weighted_norms(self) -> list[float]:
        """w |u| / sum w of each update, in the order given."""
        return [math.sqrt(math.fsum(squares)) for squares in self._update_squares]

    @property
    def divergence(self) -> float | None:
        """|sum w u| / sum w |u|: 1 where all silos pull the same way, near 0 where they cancel out."""
        spread = math.fsum(self.weighted_norms)
        return self.norm / spread if spread else None

    def blocks(self) -> Iterator[tuple[slice, Vector]]:
        """The mean, float32 rounded once from float64, with where each block lies.

        UpdateError if an update has a value that is not finite; OSError if one cannot be read.
        """
        product, total, square = np.empty((3, min(self._size, BLOCK)), dtype=np.float64)
        for block in blocks_of(self._size):
            length = block.stop - block.start
            yield block, self._block(block, product[:length], total[:length], square[:length])

    def _block(self, block: slice, product: _Block, total: _Block, square: _Block) -> Vector:
        total.fill(0)
        with np.errstate(invalid="ignore", over="ignore"):  # the culprit is named below, not warned about
            for number, (update, share) in enumerate(zip(self._updates, self._shares, strict=True)):
                values = update.vector.read(block.start, block.stop)
                np.multiply(values, share, out=product, dtype=np.float64)
                self._update_squares[number].append(_sum_of_squares(product, square))
                total += product
            mean = total.astype(np.float32)
        # Finite float32 values cannot overflow a float64 sum, so one look at the sum covers every silo.
        if not math.isfinite(found := _sum_of_squares(mean, square)):
            self._blame(block)
        self._squares.append(found)
        return mean

    def _blame(self, block: slice) -> None:
        for update in self._updates:
            if not np.isfinite(update.vector.read(block.start, block.stop)).all():
                raise UpdateError(update.silo, "has values that are not finite")


def _sum_of_squares(values: npt.NDArray[np.floating], out: _Block) -> float:
    return float(np.square(values, out=out, dtype=np.float64).sum())


def _check(update: Update, size: int) -> None:
    if update.vector.size != size:
        raise UpdateError(update.silo, f"has {update.vector.size} elements, not {size}")
    if not (math.isfinite(update.weight) and update.weight > 0):
        raise UpdateError(update.silo, f"has weight {update.weight}, which is not a positive number")
