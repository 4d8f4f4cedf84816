"""What has to hold before a model is trained privately, looked at once a run: refused by name where it does not."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedplat.reasons import Code, Reason
from fedplat.spec.model import RunSpec
from fedplat.spec.privacy import (
    PrivateMetrics,
    check_private,
    expected_batch_size,
    privacy_unit,
    sampling_rate,
    steps_per_round,
)
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.examples import Examples
from fedplat_silo.tasks.base import Task
from fedplat_silo.trainer.dp.bookkeeping import Bookkeeping
from fedplat_silo.trainer.dp.engine import Engine, Unsuitable
from fedplat_silo.trainer.dp.fallback import OpacusHooks
from fedplat_silo.trainer.dp.training import PrivateTerms
from fedplat_silo.trainer.dp.units import Units

log = logging.getLogger(__name__)
_NUM_PROBES = 3
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Preparation:
    """A private run at this silo: what no round changes."""

    spec: RunSpec
    units: Units
    engine: type[Engine]

    def terms(self, noise_multiplier: float | None) -> PrivateTerms:
        """Those of one round. Refused without noise: nothing is trained in the clear by mistake."""
        if noise_multiplier is None or not noise_multiplier > 0:
            raise _refused(self.spec, "the round came without a noise multiplier")
        num_units, privacy = len(self.units), self.spec.privacy
        return PrivateTerms(
            units=self.units,
            engine=self.engine,
            clip_norm=privacy.clip_norm,
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate(self.spec, num_units),
            expected_batch_size=expected_batch_size(self.spec),
            num_steps=steps_per_round(self.spec, num_units),
            shows_metrics=privacy.metrics is PrivateMetrics.UNPROTECTED,
        )


def prepare(task: Task[Any], module: nn.Module, examples: Examples, spec: RunSpec) -> Preparation:
    """Checks spec, task, data and model, and finds the engine. Refused with PRIVACY; the detail says why."""
    try:
        check_private(spec)
        units = Units(examples, privacy_unit(spec))
    except ValueError as error:
        raise _refused(spec, str(error)) from None
    if problems := [*_problems_of_task(task), *problems_of_model(module)]:
        raise _refused(spec, "; ".join(problems))
    return Preparation(spec, units, choose_engine(task, module, examples))


def _refused(spec: RunSpec, why: str) -> Refused:
    log.warning("this cannot be trained privately: %s", why)
    return Refused(Reason.of(Code.PRIVACY, task=spec.task.name), f"this cannot be trained privately: {why}")


def _problems_of_task(task: Task[Any]) -> Iterator[str]:
    if type(task).train_round is not Task.train_round:
        yield f"the task {task.spec.task.name!r} has a training loop of its own"


def problems_of_model(module: nn.Module) -> Iterator[str]:
    """What mixes records, or carries them along outside the gradients."""
    from opacus.validators import ModuleValidator

    module.train()
    yield from (str(error) for error in ModuleValidator.validate(module, strict=False))
    for name, layer in module.named_modules():
        # without learning parameters these pass Opacus' validator, and their buffers still follow the data
        if isinstance(layer, nn.modules.batchnorm._NormBase) and (
            isinstance(layer, nn.modules.batchnorm._BatchNorm) or layer.track_running_stats
        ):
            yield f"{name or 'the model'} is a {type(layer).__name__}, which takes statistics over records"
    learning = [p for p in module.parameters() if p.requires_grad]
    if not learning:
        yield "no parameter learns"
    if len({p.dtype for p in learning}) > 1 or any(p.dtype not in (torch.float32, torch.float64) for p in learning):
        yield "parameters that learn must all be float32, or all float64"


def choose_engine(task: Task[Any], module: nn.Module, examples: Examples) -> type[Engine]:
    """The first engine whose norms and sums are those of records taken one by one; Refused if there is none, or if a
    forward pass in training mode changes a buffer."""
    rows = torch.arange(min(_NUM_PROBES, len(examples)))
    inputs, targets = (_finite(t).to(next(module.parameters()).device) for t in examples.fetch(rows))
    probe = _probe(module)
    before = [b.clone() for b in probe.buffers()]
    expected = _one_by_one(task, probe, inputs, targets)
    probe.train()
    task.loss(probe, inputs, targets)
    for (name, after), first in zip(probe.named_buffers(), before, strict=True):
        if not torch.equal(after, first):
            raise _refused(task.spec, f"training changes the buffer {name!r}, which then holds what records left in it")
    reasons: list[str] = []
    for engine in (Bookkeeping, OpacusHooks):
        why = _objection(engine, task, _probe(module), (inputs, targets), expected)
        if why is None:
            log.info("gradients are clipped by %s%s", engine.__name__, f" ({reasons[0]})" if reasons else "")
            return engine
        reasons.append(f"{engine.__name__}: {why}")
    raise _refused(task.spec, "its gradient cannot be taken apart by record: " + "; ".join(reasons))


def _objection(
    engine: type[Engine], task: Task[Any], probe: nn.Module, data: tuple[Tensor, Tensor], expected: Tensor
) -> str | None:
    """Why the engine is not to be used; None if it is right about `expected` (records x size of the model)."""
    try:
        with engine(probe) as entered:
            norms = entered.norms(task.loss(entered.model, *data)[1].sum(), len(data[0]))
            sums: dict[Tensor, Tensor] = {p: torch.zeros_like(p).flatten() for p in entered.parameters}
            factors = torch.arange(1.0, len(norms) + 1).to(norms)
            entered.add_clipped(factors, sums)
    except Unsuitable as error:
        return str(error)
    found = torch.cat([norms, *sums.values()]).detach()
    true = torch.cat([torch.linalg.vector_norm(expected, dim=1), factors @ expected])
    off = torch.linalg.vector_norm(found - true) / torch.linalg.vector_norm(true).clamp(min=1e-30)
    return None if bool(off <= _TOLERANCE) else f"its result is off by {float(off):.1e}"


def _one_by_one(task: Task[Any], probe: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """(records, size of the model): the gradient of each record alone."""
    parameters = [p for p in probe.parameters() if p.requires_grad]
    found = []
    for i in range(len(inputs)):
        loss = task.loss(probe, inputs[i : i + 1], targets[i : i + 1])[1].sum()
        parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


@torch.no_grad()
def _probe(module: nn.Module) -> nn.Module:
    """A copy with other weights, for at zero, say, a gradient is zero whatever computes it; nothing drops out."""
    probe = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        if parameter.requires_grad:
            spread = (max(1, parameter.numel() // max(1, len(parameter)))) ** -0.5 if parameter.dim() else 1.0
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=spread)
    for layer in probe.modules():
        layer.training = any(p.requires_grad for p in layer.parameters(recurse=False))
    return probe


def _finite(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor) if tensor.is_floating_point() else tensor
