"""The interface of a task: a model, its data, its loss. Built-in tasks have no other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from pydantic import BaseModel
from torch import Tensor, nn

from fedplat.metrics import MetricSums
from fedplat.spec.model import RunSpec
from fedplat_silo.data.examples import Datasets
from fedplat_silo.data.source import DataSource
from fedplat_silo.trainer.dp.training import train_private
from fedplat_silo.trainer.loop import LocalRound, train_batches

Options = TypeVar("Options", bound=BaseModel)


class Task(ABC, Generic[Options]):
    """What is trained in every silo. Installed there, offered by the entry point group `fedplat.tasks`.

    Every worker of a silo makes one, for a whole run. A task MUST be deterministic: random numbers only from
    torch's default generator, which is seeded before `build_model` and before each round. It MUST NOT keep state
    between rounds outside the model, nor write to disk or network. An exception ends the silo's round; its text
    stays in the silo's log. A `fedplat_silo.data.errors.Refused` MUST name schema columns only in its reason.
    """

    options_type: type[Options]

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.options = self.options_type.model_validate(spec.task.options)

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new model, on the CPU. MUST give the same parameters, in the same order, for the same options."""

    @abstractmethod
    def load(self, source: DataSource) -> Datasets:
        """The silo's data, checked. Raises `Refused` if it does not fit the options.

        Where training is private, an example and its weight MUST depend on the options and on its own record alone.
        """

    @abstractmethod
    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(outputs, losses) of a batch of n: both with n rows, losses one-dimensional and unweighted.

        MUST go through `model(...)` once, and that call MUST use every parameter that learns.
        """

    @abstractmethod
    def sums(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> MetricSums:
        """The metrics of these examples, as sums. MUST have the same keys for any number of examples, also none."""

    def train_round(self, work: LocalRound) -> MetricSums:
        """One round of local training, in place; returns the sums over the examples as they were trained on.

        Override it for a training loop of your own; it MUST leave the same model in all workers. Then the task is
        refused where training has to be private.
        """
        return train_private(self, work, work.private) if work.private else train_batches(self, work)
