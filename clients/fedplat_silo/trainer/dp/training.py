"""The loop of DP-SGD: Abadi et al. 2016, with Poisson samples and a declared divisor."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedplat.metrics import MetricSums
from fedplat_silo.trainer.ddp import copy_from_first
from fedplat_silo.trainer.dp.engine import Engine
from fedplat_silo.trainer.dp.noise import noised
from fedplat_silo.trainer.dp.sampler import PoissonSampler, shared_key
from fedplat_silo.trainer.dp.units import Batch, Units
from fedplat_silo.trainer.loop import LocalRound, Meter, add_proximal_gradient, make_optimizer, proximal_anchors

if TYPE_CHECKING:
    from fedplat_silo.tasks.base import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrivateTerms:
    """How a round is noised. `expected_batch_size` divides every sum of gradients, whatever was drawn.

    `shows_metrics`: the sums over the examples as they were trained on leave the loop, unprotected.
    """

    units: Units
    engine: type[Engine]
    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    expected_batch_size: int
    num_steps: int
    shows_metrics: bool


def train_private(task: Task[Any], work: LocalRound, terms: PrivateTerms) -> MetricSums:
    """One round of DP-SGD, in place, with a step for each sample, also for an empty one.

    Returns the sums over what this rank saw, over nothing where metrics stay private. `work.num_private_steps` counts
    the steps as they are taken. Nothing is random that the server could know: dropout under a seed of its choice would
    tie a record's gradient to who else was drawn.
    """
    torch.manual_seed(secrets.randbits(63))
    sampler = PoissonSampler(shared_key(work.place), len(terms.units), terms.sampling_rate)
    optimizer = make_optimizer(work.training, work.trainable)
    anchors = proximal_anchors(work)
    work.module.train()
    meter = Meter(task)
    meter.add(*_nothing(task, work))
    with terms.engine(work.module) as engine:
        clipper = Clipper(task, work, terms, engine, meter if terms.shows_metrics else None)
        for step in range(terms.num_steps):
            mine = np.array_split(sampler.draw(step), work.place.num_ranks)[work.place.rank]
            release(clipper.clipped_sums(mine), engine.parameters, work, terms)
            for parameter, anchor in anchors:
                add_proximal_gradient(parameter, anchor, work.proximal_mu)
            optimizer.step()
            work.num_private_steps += 1
            work.report((step + 1) / terms.num_steps)
    if clipper.num_dropped:  # data, too: it stays in the silo
        log.warning("%d gradients were not finite and counted as zero", clipper.num_dropped)
    return meter.total()


class Clipper:
    """Sums of clipped gradients over this rank's part of a sample."""

    def __init__(
        self, task: Task[Any], work: LocalRound, terms: PrivateTerms, engine: Engine, meter: Meter | None
    ) -> None:
        self._task, self._work, self._terms, self._engine, self._meter = task, work, terms, engine, meter
        self._max_rows = max(1, work.training.batch_size // work.place.num_ranks)
        self.num_dropped = 0
        self._sums = torch.cat([torch.zeros_like(p).flatten() for p in engine.parameters])
        self._parts = split(self._sums, engine.parameters)

    def clipped_sums(self, chosen: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        """(size of all parameters,), valid until the next call. A gradient that is not finite counts as zero."""
        self._sums.zero_()
        for batch in self._terms.units.batches(chosen, self._max_rows):
            self._add(batch)
        return self._sums

    def _add(self, batch: Batch) -> None:
        begin = time.perf_counter()
        device = self._work.place.device
        inputs, targets = (t.to(device) for t in self._work.examples.fetch(batch.rows))
        self._work.waited_s += time.perf_counter() - begin
        outputs, losses = self._task.loss(self._engine.model, inputs, targets)
        norms = self._engine.norms((losses * batch.weights.to(losses)).sum(), batch.num_units)
        is_finite = torch.isfinite(norms)
        if bool(is_finite.all()):
            self._engine.add_clipped(clip_factors(norms, self._terms.clip_norm), self._parts)
            self._measure(outputs, targets, losses, batch.is_real.to(device))
            return
        # zero times what is not finite is not zero: again, without them
        self.num_dropped += int((~is_finite).sum())
        if bool(is_finite.any()):
            self._add(batch.only(is_finite))

    def _measure(self, outputs: Tensor, targets: Tensor, losses: Tensor, is_real: Tensor) -> None:
        if self._meter is not None:
            shown = is_real & torch.isfinite(losses.detach())
            self._meter.add(outputs[shown], targets[shown], losses[shown])


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """What each gradient is multiplied by so that its norm is at most `clip_norm`, but for rounding (1e-7 of it)."""
    return clip_norm / norms.clamp(min=clip_norm)


def release(sums: Tensor, parameters: list[nn.Parameter], work: LocalRound, terms: PrivateTerms) -> None:
    """Makes the sums of all ranks, noised once, by rank 0, and divided by a constant, the gradients of every rank."""
    place = work.place
    if place.num_ranks > 1:
        dist.reduce(sums, dst=0)
    gradients = torch.empty_like(sums)
    if place.rank == 0:
        gradients = noised(sums, terms.noise_multiplier * terms.clip_norm, float(terms.expected_batch_size))
    copy_from_first([gradients], place)
    for parameter, part in split(gradients, parameters).items():
        parameter.grad = part.view_as(parameter)


def split(vector: Tensor, parameters: list[nn.Parameter]) -> dict[Tensor, Tensor]:
    """Each parameter's part of a vector of all of them."""
    parts = vector.split([p.numel() for p in parameters])  # type: ignore[no-untyped-call]
    return dict(zip(parameters, parts, strict=True))


@torch.no_grad()
def _nothing(task: Task[Any], work: LocalRound) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, targets and losses of no examples: what they are like has to be known all the same."""
    inputs, targets = (t.to(work.place.device) for t in work.examples.fetch(torch.zeros(1, dtype=torch.int64)))
    outputs, losses = task.loss(work.module, inputs, targets)
    return outputs[:0], targets[:0], losses[:0]
