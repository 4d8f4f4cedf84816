"""Per-unit clipping by one backward pass: Bu et al. 2022, "Differentially private optimization on large model at small
cost" (book-keeping).

Forward hooks keep what each layer got; one backward pass gives the gradients of the layers' outputs, and never those of
parameters, which come out clipped in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedplat_silo.trainer.dp import layers
from fedplat_silo.trainer.dp.engine import Engine, Unsuitable
from fedplat_silo.trainer.dp.layers import Seen, Share

Shares = Callable[[Any, Seen], Iterator[Share]]
SHARES: dict[type[nn.Module], Shares] = {
    nn.Linear: layers.linear,
    nn.Conv1d: layers.convolution,
    nn.Conv2d: layers.convolution,
    nn.Conv3d: layers.convolution,
    nn.GroupNorm: layers.group_norm,
    nn.LayerNorm: layers.layer_norm,
    nn.Embedding: layers.embedding,
}


class Bookkeeping(Engine):
    """For models of known layers, each called at most once a forward pass, none sharing a parameter."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._layers = list(_learning_layers(module))
        self._calls: dict[nn.Module, tuple[Tensor, int, GradientEdge]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._shares: list[Share] = []

    def __enter__(self) -> Self:
        self._handles = [layer.register_forward_hook(self._keep) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._calls, self._shares = {}, []

    def _keep(self, layer: nn.Module, given: tuple[object, ...], output: Tensor) -> None:
        if not (torch.is_grad_enabled() and output.requires_grad):
            return
        if layer in self._calls:
            raise Unsuitable(f"a {type(layer).__name__} is called twice")
        if not given or not isinstance(given[0], Tensor):
            raise Unsuitable(f"a {type(layer).__name__} is not called with a tensor")
        inputs = given[0].detach()
        # the edge, not the tensor: an operation in place may make another value of the tensor
        self._calls[layer] = inputs, inputs._version, get_gradient_edge(output)

    def norms(self, loss: Tensor, num_units: int) -> Tensor:
        calls, self._calls = self._calls, {}
        edges = [edge for _, _, edge in calls.values()]
        found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, edges, allow_unused=True) if edges else ()
        self._shares = []
        for (layer, (inputs, version, _)), gradients in zip(calls.items(), found, strict=True):
            if inputs._version != version:
                raise Unsuitable(f"what a {type(layer).__name__} got is changed in place")
            if gradients is None:
                continue
            if len(inputs) != len(gradients) or len(inputs) % num_units:
                raise Unsuitable(f"the first dimension of what a {type(layer).__name__} gets is not the batch")
            self._shares += SHARES[type(layer)](layer, Seen(inputs, gradients, num_units))
        return torch.stack([loss.new_zeros(num_units), *(s.squared for s in self._shares)]).sum(0).sqrt_()

    def add_clipped(self, factors: Tensor, sums: Mapping[Tensor, Tensor]) -> None:
        for share in self._shares:
            share.add_scaled(factors, sums[share.parameter])
        self._shares = []


def _learning_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers with parameters that learn. Unsuitable if one is unknown, or a parameter is in two places."""
    owners: dict[nn.Parameter, str] = {}
    for name, layer in module.named_modules():
        own = dict(layer.named_parameters(recurse=False, remove_duplicate=False))
        if not any(p.requires_grad for p in own.values()):
            continue
        if type(layer) not in SHARES or not own.keys() <= {"weight", "bias"}:
            raise Unsuitable(f"{name or 'the model'} is a {type(layer).__name__}")
        if isinstance(layer, nn.Embedding) and (layer.max_norm or layer.scale_grad_by_freq or layer.sparse):
            raise Unsuitable(f"{name} is an Embedding with options that look at the batch")
        for key, parameter in own.items():
            if parameter in owners:
                raise Unsuitable(f"{name}.{key} is {owners[parameter]}")
            owners[parameter] = f"{name}.{key}"
        yield layer
