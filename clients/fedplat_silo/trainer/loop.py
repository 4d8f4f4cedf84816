"""One round of local training at one rank.

All workers of a silo see the same sequence of global batches, a function of (seed, silo, round) alone; each takes its
slice. The loss is a mean over the global batch, so one worker and many follow the same curve.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedplat.metrics import MetricSums, add_sums
from fedplat.reasons import Code, Reason
from fedplat.spec.model import Optimizer, TrainingSection
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.examples import Examples
from fedplat_silo.trainer.checkpoint import Checkpoints
from fedplat_silo.trainer.ddp import Place
from fedplat_silo.trainer.state import put_state, take_state

if TYPE_CHECKING:
    from fedplat_silo.tasks.base import Task
    from fedplat_silo.trainer.dp.training import PrivateTerms

Indices = npt.NDArray[np.int64]
_MIN_EVALUATION_BATCH = 256
_METER_ELEMENTS = 1 << 18


@dataclass
class LocalRound:
    """What one rank trains with in one round.

    `received`: the shared parameters as they came, the anchor of FedProx. `report` takes the share that is done.
    `checkpoints`: where the round may go on, and leaves its state every `training.local_checkpoint_steps`.
    `waited_s`: how long the loop waited for data. `num_recovered`: examples that were trained on before a kill.
    `private`: the round is one of DP-SGD on these terms; `num_private_steps`: how many it has taken.
    """

    model: nn.Module
    examples: Examples
    training: TrainingSection
    seed: int
    place: Place
    received: dict[str, Tensor]
    proximal_mu: float
    report: Callable[[float], None]
    checkpoints: Checkpoints | None = None
    waited_s: float = field(default=0.0)
    num_recovered: int = field(default=0)
    private: PrivateTerms | None = None
    num_private_steps: int = field(default=0)

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [p for p in self.model.parameters() if p.requires_grad]


def train_batches(task: Task[Any], work: LocalRound) -> MetricSums:
    """The loop of every task that has none of its own. Trains in place; returns the sums over what this rank saw."""
    optimizer = make_optimizer(work.training, work.trainable)
    meter = Meter(task)
    anchors = proximal_anchors(work)
    num_done = recover(work, optimizer, meter)
    work.model.train()
    batches = enumerate(global_batches(len(work.examples), work.training, work.seed), start=1)
    for step, (share, batch) in islice(batches, num_done, None):
        inputs, targets, weights, num_real = my_slice(work, batch)
        optimizer.zero_grad()
        outputs, losses = task.loss(work.model, inputs, targets)
        # times the number of ranks, because DDP divides the sum of gradients by it
        loss = (losses * weights).sum() * work.place.num_ranks
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, anchor in anchors:
            add_proximal_gradient(parameter, anchor, work.proximal_mu)
        if work.training.gradient_clip is not None:
            nn.utils.clip_grad_norm_(work.trainable, work.training.gradient_clip)
        optimizer.step()
        meter.add(outputs[:num_real], targets[:num_real], losses[:num_real])
        keep(work, step, optimizer, meter)
        work.report(share)
    return meter.total()


def recover(work: LocalRound, optimizer: torch.optim.Optimizer, meter: Meter) -> int:
    """The number of steps that were done before a kill; everything is as it was after them."""
    num_done = work.checkpoints.newest() if work.checkpoints else 0
    if work.checkpoints and num_done:
        put_state(work, optimizer, meter, work.checkpoints.load())
        work.num_recovered = meter.total().num_examples
    return num_done


def keep(work: LocalRound, step: int, optimizer: torch.optim.Optimizer, meter: Meter) -> None:
    """Leaves a checkpoint, if one is due after this step."""
    every = work.training.local_checkpoint_steps
    if work.checkpoints and every and step % every == 0:
        work.checkpoints.save(step, take_state(work, optimizer, meter))


def steps_of_round(num_examples: int, training: TrainingSection) -> int:
    """How many global batches a round has."""
    return training.steps or -(-num_examples // training.batch_size) * (training.epochs or 0)


def global_batches(num_examples: int, training: TrainingSection, seed: int) -> Iterator[tuple[float, Indices]]:
    """(share of the round done after it, example numbers) of each global batch: all examples in a new order each
    epoch, the last batch of an epoch with what is left; `steps` run on over as many epochs as they need."""
    generator = np.random.default_rng(seed)
    per_epoch, num_steps = -(-num_examples // training.batch_size), steps_of_round(num_examples, training)
    order = np.arange(0)
    for step in range(num_steps):
        start = step % per_epoch * training.batch_size
        if start == 0:
            order = generator.permutation(num_examples)
        yield (step + 1) / num_steps, order[start : start + training.batch_size]


def my_slice(work: LocalRound, batch: Indices) -> tuple[Tensor, Tensor, Tensor, int]:
    """(inputs, targets, weights, number of real examples) of this rank's contiguous slice of a global batch.

    Over all ranks the weights sum to 1. A rank whose slice is empty takes one example along with weight 0: it has
    to take part in the averaging of gradients.
    """
    begin = time.perf_counter()
    mine = np.array_split(batch, work.place.num_ranks)[work.place.rank]
    total = work.examples.weights[torch.from_numpy(batch)].double().sum()
    indices = torch.from_numpy(mine if len(mine) else batch[:1])
    weights = work.examples.weights[indices] / total * bool(len(mine))
    inputs, targets = work.examples.fetch(indices)
    device = work.place.device
    moved = inputs.to(device), targets.to(device), weights.float().to(device), len(mine)
    work.waited_s += time.perf_counter() - begin
    return moved


def proximal_anchors(work: LocalRound) -> list[tuple[nn.Parameter, Tensor]]:
    """The shared parameters that learn, each with its received value; none without FedProx."""
    if not work.proximal_mu:
        return []
    learning = ((name, p) for name, p in work.module.named_parameters() if p.requires_grad)
    return [(p, work.received[name].to(p)) for name, p in learning if name in work.received]


def add_proximal_gradient(parameter: nn.Parameter, received: Tensor, mu: float) -> None:
    """The gradient of mu/2 ||w - received||^2: FedProx, Li et al. 2020, equation 2."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(parameter.detach() - received, alpha=mu)


def make_optimizer(training: TrainingSection, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fresh optimiser: no state survives a round."""
    rate, decay = training.learning_rate, training.weight_decay
    match training.optimizer:
        case Optimizer.SGD:
            return torch.optim.SGD(parameters, rate, momentum=training.momentum, weight_decay=decay)
        case Optimizer.ADAM:
            return torch.optim.Adam(parameters, rate, weight_decay=decay)
        case Optimizer.ADAMW:
            return torch.optim.AdamW(parameters, rate, weight_decay=decay)


@torch.no_grad()
def evaluate(
    task: Task[Any],
    model: nn.Module,
    examples: Examples,
    training: TrainingSection,
    place: Place,
    report: Callable[[float], None],
) -> MetricSums:
    """The sums over this rank's contiguous slice of `examples`: over all ranks each record counts once."""
    model.eval()
    meter = Meter(task)
    mine = np.array_split(np.arange(len(examples)), place.num_ranks)[place.rank]
    num_real = len(mine)
    mine = mine if num_real else np.zeros(1, dtype=np.int64)  # an empty slice still has to know the sums' keys
    size = max(training.batch_size, _MIN_EVALUATION_BATCH)
    for start in range(0, len(mine), size):
        inputs, targets = (t.to(place.device) for t in examples.fetch(torch.from_numpy(mine[start : start + size])))
        outputs, losses = task.loss(model, inputs, targets)
        meter.add(outputs[:num_real], targets[:num_real], losses[:num_real])
        report(min(1.0, (start + size) / len(mine)))
    return meter.total()


@torch.no_grad()
def empty_sums(task: Task[Any], model: nn.Module, examples: Examples, place: Place) -> MetricSums:
    """The sums over no examples: their names and lengths, for everybody to know before there are any."""
    model.eval()
    inputs, targets = (t.to(place.device) for t in examples.fetch(torch.zeros(1, dtype=torch.int64)))
    outputs, losses = task.loss(model, inputs, targets)
    return task.sums(outputs[:0].cpu(), targets[:0].cpu(), losses[:0].cpu())


class Meter:
    """Adds metric sums up, many batches at a time: the sums of a small batch cost more than its training step."""

    def __init__(self, task: Task[Any]) -> None:
        self._task = task
        self._parts: list[MetricSums] = []
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._num_elements = 0

    def add(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> None:
        """A batch as the model saw it."""
        self._pending.append((outputs.detach(), targets, losses.detach()))
        self._num_elements += outputs.numel() + targets.numel()
        if self._num_elements > _METER_ELEMENTS:
            self._flush()

    def total(self) -> MetricSums:
        """The sum over all batches. Refused with UPDATE_NOT_FINITE if a loss is not finite: training has diverged."""
        self._flush()
        self._parts = [add_sums(self._parts)]
        return self._parts[0]

    def begin_with(self, sums: MetricSums) -> None:
        """Takes over what was added up before."""
        self._parts = [sums]

    def _flush(self) -> None:
        if self._pending:
            outputs, targets, losses = (torch.cat(column).cpu() for column in zip(*self._pending, strict=True))
            if not torch.isfinite(losses).all():
                raise Refused(Reason.of(Code.UPDATE_NOT_FINITE), "a loss is not finite")
            self._parts.append(self._task.sums(outputs, targets, losses))
        self._pending, self._num_elements = [], 0
