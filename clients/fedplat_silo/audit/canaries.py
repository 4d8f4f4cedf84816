"""Canaries: units that do not exist, each with a weight of its own that nobody else's gradient touches."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from fedplat.metrics import MetricSums
from fedplat.privacy.audit import Canaries
from fedplat.spec.base import Section
from fedplat.spec.model import Optimizer, RunSpec, TaskSection, TrainingSection
from fedplat.spec.privacy import PrivacyUnit
from fedplat_silo.data.examples import Datasets, TensorExamples
from fedplat_silo.data.source import DataSource
from fedplat_silo.tasks.base import Task
from fedplat_silo.trainer.ddp import Place
from fedplat_silo.trainer.dp.training import PrivateTerms
from fedplat_silo.trainer.dp.units import Units
from fedplat_silo.trainer.loop import LocalRound

NUM_CANARIES = 1000
_EXCESS = 10.0
_BATCH_SIZE = 512
_RECORDS_OF_A_PATIENT = 2


class CanaryOptions(Section):
    """`gradient_norm`: of a record's gradient, before it is clipped."""

    num_canaries: Annotated[int, Field(ge=1)]
    gradient_norm: Annotated[float, Field(gt=0)]


class CanaryTask(Task[CanaryOptions]):
    """A Dirac gradient each: canary i pulls weight i, and no other, always by the same amount."""

    options_type = CanaryOptions

    def build_model(self) -> nn.Module:
        model = nn.Linear(self.options.num_canaries, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model

    def load(self, source: DataSource) -> Datasets:
        num = self.options.num_canaries
        everyone = TensorExamples(torch.eye(num), torch.zeros(num))
        return Datasets(everyone, everyone)

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model(inputs)[:, 0]
        return outputs, outputs * -self.options.gradient_norm

    def sums(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> MetricSums:
        return MetricSums.of_values(outputs.numpy(), targets.numpy(), losses.numpy())


def attack(spec: RunSpec, unit: PrivacyUnit, terms: PrivateTerms, report: Callable[[float], None]) -> Canaries:
    """Trains on canaries alone, each of them in by a fair coin, by the loop of every private round.

    A weight begins at 0 and loses what each step releases for it, so in the end it is the sum over all steps; in clip
    norms, that is its canary's score. The real units' part of a release is zero there, so they are left out.
    """
    section = {
        "name": "canaries",
        "options": {"num_canaries": NUM_CANARIES, "gradient_norm": _EXCESS * terms.clip_norm},
    }
    task = CanaryTask(spec.model_copy(update={"task": TaskSection.model_validate(section)}))
    included = _toss(NUM_CANARIES)
    examples, model = _examples(included, unit), task.build_model()
    work = LocalRound(
        model=model,
        examples=examples,
        training=_summing(spec.training),
        seed=0,
        place=Place(),
        received={},
        proximal_mu=0.0,
        report=report,
        private=replace(terms, units=Units(examples, unit), shows_metrics=False),
    )
    task.train_round(work)
    (weights,) = (p.detach().double().flatten().numpy() for p in model.parameters())
    return Canaries(weights * (terms.expected_batch_size / terms.clip_norm), included)


def _toss(num: int) -> npt.NDArray[np.bool_]:
    """Fair coins from the operating system."""
    return np.unpackbits(np.frombuffer(secrets.token_bytes(-(-num // 8)), dtype=np.uint8))[:num].astype(np.bool_)


def _examples(included: npt.NDArray[np.bool_], unit: PrivacyUnit) -> TensorExamples:
    """Those that are in; where the unit is a patient, each of them twice, for all records of one are clipped as one."""
    num_records = _RECORDS_OF_A_PATIENT if unit is PrivacyUnit.PATIENT else 1
    owners = torch.from_numpy(np.flatnonzero(included)).repeat_interleave(num_records)
    patients = owners if unit is PrivacyUnit.PATIENT else None
    return TensorExamples(torch.eye(len(included))[owners], torch.zeros(len(owners)), patients=patients)


def _summing(training: TrainingSection) -> TrainingSection:
    """An optimiser that adds up what is released, and nothing else."""
    plain = {"optimizer": Optimizer.SGD, "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    return training.model_copy(update=plain | {"batch_size": _BATCH_SIZE})
