"""Metrics as a release: sums over the test records to which each unit adds a bounded vector, and noise on the sums.

What a unit adds is the mean of its records' counts of answers (a part of norm at most 1) beside the mean of their
losses, each cut off at a constant and in units of it (a part in [-1, 1]), over the root of the number of parts: a
vector of norm at most 1. The noise of each coordinate is `metrics_noise_multiplier` times that, so an evaluation is one
step of the Gaussian mechanism over everyone. All that comes after the noise is arithmetic on what may be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedplat.metrics import MetricSums
from fedplat.reasons import Code, Reason
from fedplat.spec.privacy import privacy_unit
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.examples import Datasets
from fedplat_silo.tasks.base import Task
from fedplat_silo.trainer.ddp import Place
from fedplat_silo.trainer.dp.noise import noised
from fedplat_silo.trainer.dp.units import Batch, Units
from fedplat_silo.trainer.loop import empty_sums

Floats = npt.NDArray[np.float64]
_ANSWERS = ("confusion", "correct")
_MIN_BATCH = 256


class NoisedMetrics:
    """What a silo says of a model's figures. `nothing`: such sums over no records, which give names and lengths.

    `examples` of the sums is the number of test units, which is public; a patient counts once, however many records
    they have. Refused where the unit is the patient and the test records do not say whose they are.
    """

    def __init__(self, task: Task[Any], module: nn.Module, data: Datasets, place: Place) -> None:
        privacy = task.spec.privacy
        assert privacy.metrics_noise_multiplier is not None
        self.noise_multiplier = privacy.metrics_noise_multiplier
        self.nothing = released_part(empty_sums(task, module, data.train, place))
        self._task, self._module, self._examples, self._place = task, module, data.test, place
        self._loss_clip = privacy.metrics_loss_clip
        self._max_rows = max(task.spec.training.batch_size, _MIN_BATCH)
        try:
            self._units = Units(data.test, privacy_unit(task.spec))
        except ValueError as error:
            raise Refused(Reason.of(Code.PRIVACY), f"the metrics cannot be noised: {error}") from None

    @torch.no_grad()
    def measure(self, report: Callable[[float], None]) -> MetricSums | None:
        """The noised sums, at rank 0; None at the other ranks, and where there is nobody to test on."""
        if not len(self._examples):
            return None
        num_units = len(self._units)
        self._module.eval()
        mine = np.array_split(np.arange(num_units), self._place.num_ranks)[self._place.rank]
        total, num_done = np.zeros(vector_length(self.nothing)), 0
        for batch in self._units.batches(mine, self._max_rows):
            total += sum(self._contributions(batch))
            num_done += batch.num_units
            report(num_done / len(mine))
        found = release(torch.from_numpy(total), self.noise_multiplier, self._place)
        return None if found is None else as_sums(found.numpy(), num_units, self._loss_clip, self.nothing)

    def _contributions(self, batch: Batch) -> Sequence[Floats]:
        """One vector a unit, each made from its own records alone."""
        device = self._place.device
        inputs, targets = (t.to(device) for t in self._examples.fetch(batch.rows))
        outputs, losses = (t.cpu() for t in self._task.loss(self._module, inputs, targets))
        losses, targets = cut_off(losses, self._loss_clip), targets.cpu()
        units = batch.is_real.view(batch.num_units, -1).sum(1).tolist()
        width, found = len(batch.rows) // batch.num_units, []
        for start, num_real in zip(range(0, len(batch.rows), width), units, strict=True):
            rows = slice(start, start + num_real)
            found.append(self._contribution(outputs[rows], targets[rows], losses[rows]))
        return found

    def _contribution(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> Floats:
        """Answers that are no numbers count as none."""
        is_finite = bool(torch.isfinite(outputs).all())
        sums = self._task.sums(outputs, targets, losses) if is_finite else self.nothing
        return contribution(sums, losses.numpy(), self._loss_clip, self.nothing)


def released_part(empty: MetricSums) -> MetricSums:
    """What is left of a task's sums over no records: counts of answers, and the loss."""
    return MetricSums(
        counts={name: counts for name, counts in empty.counts.items() if name in ("examples", *_ANSWERS)},
        totals={name: total for name, total in empty.totals.items() if name == "loss"},
        noised=True,
    )


def vector_length(nothing: MetricSums) -> int:
    """How many coordinates are released."""
    return sum(len(nothing.counts[name]) for name in _names(nothing)) + len(nothing.totals)


def contribution(sums: MetricSums, losses: Floats, loss_clip: float, nothing: MetricSums) -> Floats:
    """What one unit adds, by the sums over its records and their losses, which are cut off already: of Euclidean norm
    at most 1."""
    parts = [within_one(np.asarray(sums.counts[name], dtype=np.float64) / len(losses)) for name in _names(nothing)]
    parts += [np.array([losses.mean() / loss_clip])] * len(nothing.totals)
    return np.concatenate(parts) / math.sqrt(len(parts))


def cut_off(losses: Tensor, loss_clip: float) -> Tensor:
    """No record's loss counts more; one that is not a number counts as much as any may."""
    return losses.double().nan_to_num(nan=loss_clip).clamp(-loss_clip, loss_clip)


def within_one(part: Floats) -> Floats:
    """Scaled down to a norm of 1, if it is above."""
    return part / max(1.0, float(np.linalg.norm(part)))


def release(total: Tensor, deviation: float, place: Place) -> Tensor | None:
    """The sum over all ranks, noised once, by rank 0; None at the others."""
    total = total.to(place.device)
    if place.num_ranks > 1:
        dist.reduce(total, dst=0)
    return None if place.rank else noised(total.cpu(), deviation, 1.0)


def as_sums(vector: Floats, num_units: int, loss_clip: float, nothing: MetricSums) -> MetricSums:
    """The released vector in the units of a task's sums."""
    names = _names(nothing)
    scaled = vector * math.sqrt(len(names) + len(nothing.totals))
    *parts, losses = np.split(scaled, np.cumsum([len(nothing.counts[name]) for name in names]))
    counts = {"examples": [num_units]}
    for name, cells in zip(names, parts, strict=True):
        counts[name] = whole(cells, num_units if name == "confusion" else None)
    totals = {name: float(loss) * loss_clip for name, loss in zip(nothing.totals, losses, strict=True)}
    return MetricSums(counts=counts, totals=totals, noised=True)


def whole(cells: Floats, total: int | None) -> list[int]:
    """Whole numbers near the cells; where their true sum is known, the nearest cells that add up to it first. Without
    bias: nothing is cut off at 0."""
    if total is None:
        return [round(cell) for cell in cells]
    cells = cells + (total - cells.sum()) / len(cells)
    near = np.floor(cells)
    near[np.argsort(near - cells, kind="stable")[: round(total - near.sum())]] += 1
    return [int(cell) for cell in near]


def _names(nothing: MetricSums) -> list[str]:
    return [name for name in _ANSWERS if name in nothing.counts]
