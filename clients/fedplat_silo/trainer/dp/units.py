"""Units of the guarantee, and the rows of examples that belong to each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedplat.spec.privacy import PrivacyUnit
from fedplat_silo.data.examples import Examples

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """The rows of `num_units` units, equally many of each beside each other; what each row counts in its unit's loss.

    A unit with fewer rows than the others repeats its first one, for nothing: `is_real` is False there.
    """

    rows: Tensor
    weights: Tensor
    is_real: Tensor
    num_units: int

    def only(self, chosen: Tensor) -> Batch:
        """The units of a mask."""
        kept = chosen.cpu().repeat_interleave(len(self.rows) // self.num_units)
        return Batch(self.rows[kept], self.weights[kept], self.is_real[kept], int(chosen.sum()))


class Units:
    """Records, or patients; a patient's loss is the mean of their records' losses."""

    def __init__(self, examples: Examples, unit: PrivacyUnit) -> None:
        self._weights = examples.weights.double()
        self._members: list[Indices] | None = None
        if unit is PrivacyUnit.PATIENT:
            if examples.patients is None:
                raise ValueError("the data has no patient key")
            keys = examples.patients.numpy()
            order = np.argsort(keys, kind="stable")
            self._members = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)

    def __len__(self) -> int:
        return len(self._weights) if self._members is None else len(self._members)

    def batches(self, chosen: Indices, max_rows: int) -> Iterator[Batch]:
        """The chosen units, `max_rows` rows at a time; one unit with more comes alone."""
        if self._members is None:
            for start in range(0, len(chosen), max_rows):
                rows = torch.from_numpy(chosen[start : start + max_rows])
                yield Batch(rows, self._weights[rows], torch.ones(len(rows), dtype=torch.bool), len(rows))
            return
        # the smallest first, so that few rows are there only to fill up
        members = sorted((self._members[u] for u in chosen), key=len)
        start = 0
        for end in range(1, len(members) + 1):
            if end == len(members) or (end + 1 - start) * len(members[end]) > max_rows:
                yield self._batch(members[start:end])
                start = end

    def _batch(self, members: list[Indices]) -> Batch:
        most = len(members[-1])
        rows = torch.from_numpy(np.concatenate([np.pad(m, (0, most - len(m)), constant_values=m[0]) for m in members]))
        counts = torch.tensor([len(m) for m in members])[:, None]
        is_real = (torch.arange(most) < counts).flatten()
        weights = self._weights[rows] * is_real / counts.repeat_interleave(most)
        return Batch(rows, weights, is_real, len(members))
