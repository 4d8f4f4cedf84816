"""A task of any model, rounds of it, and per-record gradients by `vmap(grad)`: the reference for what is clipped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedplat.metrics import MetricSums
from fedplat.spec.base import Section
from fedplat.spec.model import RunSpec
from fedplat.spec.privacy import PrivacyUnit
from fedplat_silo.data.examples import Datasets, Examples, TensorExamples
from fedplat_silo.data.source import DataSource
from fedplat_silo.tasks.base import Task
from fedplat_silo.trainer.ddp import Place
from fedplat_silo.trainer.dp.bookkeeping import Bookkeeping
from fedplat_silo.trainer.dp.engine import Engine
from fedplat_silo.trainer.dp.training import PrivateTerms
from fedplat_silo.trainer.dp.units import Units
from fedplat_silo.trainer.loop import LocalRound

ALONE = Place()


class NoOptions(Section):
    pass


class Toy(Task[NoOptions]):
    """Squared errors of whatever comes out."""

    options_type = NoOptions

    def build_model(self) -> nn.Module:
        return mlp()

    def load(self, source: DataSource) -> Datasets:
        raise NotImplementedError

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model(inputs)
        return outputs, losses_of(outputs, targets)

    def sums(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> MetricSums:
        return MetricSums(counts={"examples": [len(losses)]}, totals={"loss": float(losses.sum())})


class Classes(Toy):
    """The inputs are the outputs, scores of classes, and the loss is ten times the first of them."""

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, inputs[:, 0] * 10

    def sums(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> MetricSums:
        return MetricSums.of_classes(outputs.double().softmax(1).numpy(), targets.numpy(), losses.numpy())


def losses_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """One a row; the target is a number that each output is compared with."""
    return (outputs.flatten(1) - targets[:, None]).square().mean(1)


def mlp(num_in: int = 5, width: int = 7) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(num_in, width), nn.Tanh(), nn.Linear(width, 2))


def make_spec(
    training: dict[str, object] | None = None, privacy: dict[str, object] | None = None, **more: object
) -> RunSpec:
    """A private spec; `training`, `privacy` and other sections on top."""
    noise = {} if "epsilon" in (privacy or {}) else {"noise_multiplier": 1.0}
    spec = {
        "name": "test",
        "task": {"name": "toy"},
        "data": {"name": "clinic"},
        "rounds": {"count": 2},
        "strategy": {"weighting": "uniform"},
        "training": {"steps": 3, "batch_size": 4, "learning_rate": 1.0} | (training or {}),
        "privacy": {"mode": "record", "metrics": "none", "delta": 1e-5} | noise | (privacy or {}),
    }
    return RunSpec.model_validate(spec | more)


def make_examples(count: int = 30, num_in: int = 5, patients: Tensor | None = None) -> TensorExamples:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = (torch.randn(*s, generator=generator) for s in ((count, num_in), (count,)))
    return TensorExamples(inputs, targets, 0.5 + torch.rand(count, generator=generator), patients)


def make_terms(
    examples: Examples,
    engine: type[Engine] = Bookkeeping,
    clip: float = 0.3,
    noise: float = 1.0,
    rate: float = 0.4,
    batch: int = 12,
    steps: int = 3,
    shows_metrics: bool = False,
    unit: PrivacyUnit = PrivacyUnit.RECORD,
) -> PrivateTerms:
    return PrivateTerms(Units(examples, unit), engine, clip, noise, rate, batch, steps, shows_metrics)


def make_round(
    model: nn.Module, examples: Examples, terms: PrivateTerms, spec: RunSpec | None = None, place: Place = ALONE
) -> LocalRound:
    received = {name: p.detach().clone() for name, p in model.named_parameters()}
    training = (spec or make_spec()).training
    return LocalRound(model, examples, training, 5, place, received, 0.0, lambda share: None, private=terms)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_vmap(model: nn.Module, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """(records, size of the model)."""
    learning = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    scale = torch.ones(len(inputs), dtype=next(iter(learning.values())).dtype) if weights is None else weights

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        outputs = functional_call(model, parameters | fixed, (x[None],))
        return (losses_of(outputs, y[None]) * w).sum()

    found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(learning, inputs, targets, scale)
    return torch.cat([each.flatten(1) for each in found.values()], dim=1)


def by_engine(
    engine: type[Engine], model: nn.Module, inputs: Tensor, targets: Tensor, factors: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(norms, sum of scaled gradients)."""
    with engine(model) as entered:
        norms = entered.norms(losses_of(entered.model(inputs), targets).sum(), len(inputs))
        sums: dict[Tensor, Tensor] = {p: torch.zeros_like(p).flatten() for p in entered.parameters}
        entered.add_clipped(factors(norms), sums)
    return norms.detach(), torch.cat(list(sums.values())).detach()
