"""A task of a silo's own, installed as any other package is, that can misbehave.

In the silo's environment, PROBE_WIDTH is another layout and PROBE_FROZEN another value of the frozen parameter.
"""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor, nn

from fedplat.metrics import MetricSums
from fedplat.spec.base import Section
from fedplat_silo.data.examples import Datasets, TensorExamples
from fedplat_silo.data.source import DataSource
from fedplat_silo.tasks.base import Task
from fedplat_silo.trainer.loop import LocalRound


class ProbeOptions(Section):
    """`fail`: where an error is raised that quotes the data."""

    fail: Literal["", "load", "train"] = ""


class Probe(nn.Module):
    """One shared vector, and one number that is meant to be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.zeros(int(os.environ.get("PROBE_WIDTH", "3"))))
        self.frozen = nn.Parameter(torch.tensor([float(os.environ.get("PROBE_FROZEN", "1"))]))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.shared.sum() * self.frozen


class ProbeTask(Task[ProbeOptions]):
    """One record; training changes nothing."""

    options_type = ProbeOptions

    def build_model(self) -> nn.Module:
        return Probe()

    def load(self, source: DataSource) -> Datasets:
        self._text = source.path.read_text(encoding="utf-8")
        self._fail("load")
        return Datasets(*(TensorExamples(torch.ones(1), torch.ones(1)) for _ in range(2)))

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs: Tensor = model(inputs)
        return outputs, (outputs - targets) ** 2

    def sums(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> MetricSums:
        return MetricSums.of_values(outputs.numpy(), targets.numpy(), losses.numpy())

    def train_round(self, work: LocalRound) -> MetricSums:
        self._fail("train")
        return self.sums(*(torch.zeros(1) for _ in range(3)))

    def _fail(self, where: str) -> None:
        if self.options.fail == where:
            raise ValueError(f"cannot {where} {self._text}")
