"""The weighted mean of updates that the server can see.

A million elements at a time, all silos in roster order, in float64: the result depends on the order of the roster,
never on who came first, and the memory needed on the number of elements, never on the number of silos.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedplat.errors import LayoutError
from fedplat.params import Vector

BLOCK = 1_000_000

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
    """What one silo adds to the mean. `vector`: flat float32, in memory or a memory map."""

    silo: str
    weight: float
    vector: Vector


def weighted_mean(updates: Sequence[Update]) -> tuple[Vector, float]:
    """The mean update (float32, rounded once from float64) and the total weight, in the order given.

    UpdateError if one has another length or dtype, a value that is not finite, or a weight that is not positive.
    """
    if not updates:
        raise ValueError("there is no mean of no updates")
    size = len(updates[0].vector)
    for update in updates:
        _check(update, size)
    total = math.fsum(update.weight for update in updates)
    shares = [update.weight / total for update in updates]
    mean = np.empty(size, dtype=np.float32)
    product, block_sum = np.empty((2, min(size, BLOCK)), dtype=np.float64)
    for block in _blocks(size):
        length = block.stop - block.start
        mean[block] = _mean_of_block(updates, shares, block, product[:length], block_sum[:length])
    return mean, total


def update_norm(vector: npt.NDArray[np.floating]) -> float:
    """The Euclidean norm, in float64."""
    return math.sqrt(math.fsum(float(np.square(vector[b], dtype=np.float64).sum()) for b in _blocks(len(vector))))


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _mean_of_block(
    updates: Sequence[Update], shares: Sequence[float], block: slice, product: _Block, block_sum: _Block
) -> _Block:
    block_sum.fill(0)
    with np.errstate(invalid="ignore"):  # the culprit is named below, not warned about
        for update, share in zip(updates, shares, strict=True):
            block_sum += np.multiply(update.vector[block], share, out=product, dtype=np.float64)
    # Finite float32 values cannot overflow a float64 sum, so one look at the sum covers every silo.
    if not np.isfinite(block_sum).all():
        culprit = next(update for update in updates if not np.isfinite(update.vector[block]).all())
        raise UpdateError(culprit.silo, "has values that are not finite")
    return block_sum


def _check(update: Update, size: int) -> None:
    if update.vector.dtype != np.float32:
        raise UpdateError(update.silo, f"is {update.vector.dtype}, not float32")
    if update.vector.shape != (size,):
        raise UpdateError(update.silo, f"has shape {update.vector.shape}, not ({size},)")
    if not (math.isfinite(update.weight) and update.weight > 0):
        raise UpdateError(update.silo, f"has weight {update.weight}, which is not a positive number")
