"""What a model trains on: examples that can be fetched by number, in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedplat.reasons import Reason


class Examples(ABC):
    """A fixed, ordered set of examples. `weights[i]` is what example i counts in the training loss; `patients[i]`, an
    int64, is the same for all examples of one patient (None: the data has no patient key)."""

    weights: Tensor
    patients: Tensor | None = None

    def __len__(self) -> int:
        return len(self.weights)

    @abstractmethod
    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """(inputs, targets) of these examples, in this order. MUST return the same for the same index every time."""


class TensorExamples(Examples):
    """Examples that lie in memory: `inputs` and `targets` have one row an example; `weights` default to 1."""

    def __init__(
        self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None, patients: Tensor | None = None
    ) -> None:
        self.inputs = inputs
        self.targets = targets
        self.weights = torch.ones(len(inputs)) if weights is None else weights
        self.patients = patients

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.targets[indices]


class ItemExamples(Examples):
    """Examples that are read one by one: `items[i]` is (input, target), as a map-style `torch` dataset gives them."""

    def __init__(
        self,
        items: Sequence[tuple[Tensor, Tensor]],
        weights: Tensor | None = None,
        patients: Tensor | None = None,
    ) -> None:
        self.items = items
        self.weights = torch.ones(len(items)) if weights is None else weights
        self.patients = patients

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [self.items[i] for i in indices.tolist()]
        return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


@dataclass(frozen=True)
class Datasets:
    """A silo's examples. `test` may be empty; `warnings` are shown to the people who run the federation."""

    train: Examples
    test: Examples
    warnings: tuple[Reason, ...] = field(default=())
