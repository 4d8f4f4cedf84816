"""A task that adds a constant to every weight: its result is known in advance. For tests and benchmarks."""

from __future__ import annotations

import time
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedplat.metrics import MetricSums
from fedplat.spec.base import Section
from fedplat_silo.data.examples import Datasets, TensorExamples
from fedplat_silo.data.source import DataSource
from fedplat_silo.tasks.base import Task
from fedplat_silo.trainer.loop import LocalRound

_NAP_S = 0.05


class AddConstantOptions(Section):
    """`size` weights in `tensors` tensors, all 0 at first; `seconds` a round lasts; `num_examples` counts."""

    size: Annotated[int, Field(ge=1)]
    constant: float = 1.0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    tensors: Annotated[int, Field(ge=1)] = 1
    num_examples: Annotated[int, Field(ge=1)] = 1


class Weights(nn.Module):
    """Zeros; the output is the first weight."""

    def __init__(self, size: int, num_tensors: int) -> None:
        super().__init__()
        sizes = [size // num_tensors + (i < size % num_tensors) for i in range(num_tensors)]
        self.weights = nn.ParameterList([torch.zeros(s) for s in sizes])

    def forward(self, inputs: Tensor) -> Tensor:
        first: Tensor = self.weights[0][0]
        return first.expand(len(inputs))


class AddConstant(Task[AddConstantOptions]):
    """Needs no data; the test set is one record whose target is 0, so its absolute error is the first weight."""

    options_type = AddConstantOptions

    def build_model(self) -> nn.Module:
        return Weights(self.options.size, self.options.tensors)

    def load(self, source: DataSource) -> Datasets:
        train, test = (TensorExamples(torch.zeros(n, 1), torch.zeros(n)) for n in (self.options.num_examples, 1))
        return Datasets(train, test)

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs: Tensor = model(inputs)
        return outputs, (outputs - targets) ** 2

    def sums(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> MetricSums:
        return MetricSums.of_values(outputs.numpy(), targets.numpy(), losses.numpy())

    def train_round(self, work: LocalRound) -> MetricSums:
        end = time.monotonic() + self.options.seconds
        while (left_s := end - time.monotonic()) > 0:
            work.report(1 - left_s / self.options.seconds)
            time.sleep(min(left_s, _NAP_S))
        mine = torch.zeros(len(work.examples) if work.place.rank == 0 else 0)
        with torch.no_grad():
            for parameter in work.trainable:
                parameter.add_(self.options.constant)
        return self.sums(mine, mine, mine)
