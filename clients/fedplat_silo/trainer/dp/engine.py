"""Clipped sums of gradients, from one backward pass for a whole batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn


class Unsuitable(Exception):
    """The engine cannot take this model apart, and why."""


class Engine(ABC):
    """Takes a model's gradient apart into one a unit; while it is entered, the loss goes through `model`.

    A batch has the same number of rows for each of its units, those of one unit beside each other. For each batch:
    forward, `norms`, then `add_clipped` if it is wanted. Raises Unsuitable, at any time, for a model it cannot handle.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    @property
    def model(self) -> nn.Module:
        """What the loss is to be computed with."""
        return self.module

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def norms(self, loss: Tensor, num_units: int) -> Tensor:
        """(units,): the norms of all parameters' gradients of the sum `loss`, taken apart by unit."""

    @abstractmethod
    def add_clipped(self, factors: Tensor, sums: Mapping[Tensor, Tensor]) -> None:
        """Adds sum_u factors[u] * gradient[u] to each parameter's vector in `sums`."""
