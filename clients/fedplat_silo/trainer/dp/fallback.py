"""Per-unit gradients by Opacus, for models that `bookkeeping` cannot take apart."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from fedplat_silo.trainer.dp.engine import Engine, Unsuitable

if TYPE_CHECKING:
    from opacus.grad_sample import GradSampleModule

_NO_INPUT_LEARNS = "Full backward hook is firing when gradients are computed"


class OpacusHooks(Engine):
    """Every unit's gradient in memory at once: slow, but for nearly any layer, tied and reused ones, too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._hooked: GradSampleModule | None = None
        self._found: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def model(self) -> nn.Module:
        return self._hooked or self.module

    def __enter__(self) -> Self:
        from opacus.grad_sample import GradSampleModule

        try:
            self._hooked = GradSampleModule(self.module, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise Unsuitable(str(error)) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._hooked is not None:
            self._hooked.cleanup()
        self._hooked, self._found = None, []

    def norms(self, loss: Tensor, num_units: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_NO_INPUT_LEARNS)
            loss.backward()  # type: ignore[no-untyped-call]
        self._found = []
        for parameter in self.parameters:
            each = parameter.grad_sample  # type: ignore[attr-defined]
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
            if each is not None:
                self._found.append((parameter, _by_unit(each, num_units)))
        squared = (torch.linalg.vector_norm(each, dim=1).square() for _, each in self._found)
        return torch.stack([loss.new_zeros(num_units), *squared]).sum(0).sqrt_()

    def add_clipped(self, factors: Tensor, sums: Mapping[Tensor, Tensor]) -> None:
        for parameter, each in self._found:
            sums[parameter].addmv_(each.t(), factors)
        self._found = []


def _by_unit(each: object, num_units: int) -> Tensor:
    """(units, size) from (rows, ...)."""
    if not isinstance(each, Tensor) or len(each) % num_units:
        raise Unsuitable("a layer's batch has another size than the model's")
    return each.reshape(num_units, len(each) // num_units, -1).sum(1)
