"""Per-unit gradients of the layers whose shape is known in closed form: their norms, and sums of scaled ones.

A unit (a record, or a patient with several rows) is a slice of the first dimension. For a linear layer with inputs A
and output gradients G at T positions the gradient is G^T A, and its squared norm either that of the product
("instantiated") or <A A^T, G G^T> ("ghost", Goodfellow 2015), which is cheaper if 2 T^2 <= its size (Bu et al. 2022,
"Scalable and efficient training of large convolutional neural networks with differential privacy"). A convolution is
the same over its windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_CANCELLATION = 1000.0  # of the rounding error: below, a difference of large products says nothing


@dataclass(frozen=True)
class Share:
    """What one parameter contributes: squared norms (one a unit), and how sums are added to a vector of its size."""

    parameter: Tensor
    squared: Tensor
    add_scaled: Callable[[Tensor, Tensor], None]
    """From (factors, one a unit; vector)."""


@dataclass(frozen=True)
class Seen:
    """What a layer got and what came back, in `num_units` equal slices of rows."""

    inputs: Tensor
    gradients: Tensor
    num_units: int

    def by_unit(self, tensor: Tensor, *shape: int) -> Tensor:
        """A row-wise tensor, reshaped to (units, *shape)."""
        return tensor.reshape(self.num_units, *shape)


def instantiated(parameter: Tensor, gradients: Tensor) -> Share:
    """`gradients`: (units, size of the parameter)."""

    def add_scaled(factors: Tensor, out: Tensor) -> None:
        out.addmv_(gradients.t(), factors)

    return Share(parameter, torch.linalg.vector_norm(gradients, dim=1).square_(), add_scaled)


def linear(layer: nn.Linear, seen: Seen) -> Iterator[Share]:
    """Inputs (rows, ..., in), gradients (rows, ..., out)."""
    a = seen.by_unit(seen.inputs, -1, layer.in_features)
    g = seen.by_unit(seen.gradients, -1, layer.out_features)
    if layer.bias is not None and layer.bias.requires_grad:
        yield instantiated(layer.bias, g.sum(1))
    if layer.weight.requires_grad:
        yield _outer(layer.weight, a, g)


def _outer(weight: Tensor, a: Tensor, g: Tensor) -> Share:
    num_positions = a.shape[1]
    if num_positions == 1:
        squared = (torch.linalg.vector_norm(a, dim=(1, 2)) * torch.linalg.vector_norm(g, dim=(1, 2))).square_()
    elif _ghost_is_cheaper(num_positions, weight.numel()):
        squared = _ghost(torch.bmm(a, a.mT), torch.bmm(g, g.mT))
    else:
        return instantiated(weight, torch.bmm(g.mT, a).flatten(1))

    def add_scaled(factors: Tensor, out: Tensor) -> None:
        each = factors[:, None, None]
        scaled, other = (g * each, a) if g.shape[2] <= a.shape[2] else (g, a * each)
        out.view_as(weight).addmm_(scaled.flatten(0, 1).t(), other.flatten(0, 1))

    return Share(weight, squared, add_scaled)


def _ghost_is_cheaper(num_positions: int, size: int) -> bool:
    return 2 * num_positions**2 <= size


def _ghost(of_inputs: Tensor, of_gradients: Tensor) -> Tensor:
    """Squared norms, one a unit, from Gram matrices over positions. Where terms cancel so far that rounding decides,
    the upper bound |A|^2 |G|^2: a unit may be clipped too much, never too little."""
    bound = _trace(of_inputs) * _trace(of_gradients)
    squared = (of_inputs * of_gradients).sum((-2, -1))
    is_sound = squared >= _CANCELLATION * torch.finfo(squared.dtype).eps * bound
    # not where(..., bound) alone: what is not a number has to stay so
    return torch.where(is_sound | ~torch.isfinite(squared), squared, bound)


def _trace(grams: Tensor) -> Tensor:
    return grams.diagonal(dim1=-2, dim2=-1).sum(-1)


Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def convolution(layer: Conv, seen: Seen) -> Iterator[Share]:
    """Inputs (rows, in, ...), gradients (rows, out, ...)."""
    if layer.bias is not None and layer.bias.requires_grad:
        yield instantiated(layer.bias, seen.by_unit(seen.gradients.flatten(2).sum(2), -1, layer.out_channels).sum(1))
    if not layer.weight.requires_grad:
        return
    rows, size, groups = len(seen.gradients), layer.weight.numel(), layer.groups
    padded = _padded(layer, seen.inputs)
    num_positions = seen.gradients[0, 0].numel()
    if rows == seen.num_units and _ghost_is_cheaper(num_positions, size // groups):
        a = _windows(layer, padded, seen.gradients).reshape(rows * groups, -1, num_positions)
        g = seen.gradients.reshape(rows * groups, -1, num_positions)
        squared = _ghost(torch.bmm(a.mT, a), torch.bmm(g.mT, g)).view(rows, groups).sum(1)
        yield Share(layer.weight, squared, _add_scaled(layer, padded, seen.gradients))
    else:
        # every row is a group of channels of its own in one image: Rochette et al. 2019
        inputs, gradients = (t.reshape(1, -1, *t.shape[2:]) for t in (padded, seen.gradients))
        each = _weight_gradient(layer, inputs, gradients, rows)
        yield instantiated(layer.weight, seen.by_unit(each, -1, size).sum(1))


def _padded(layer: Conv, inputs: Tensor) -> Tensor:
    around = layer._reversed_padding_repeated_twice
    if not any(around):
        return inputs.contiguous()
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(inputs, list(around), mode)


def _windows(layer: Conv, padded: Tensor, outputs: Tensor) -> Tensor:
    """(rows, in, *kernel, *positions): what each weight was multiplied by."""
    rows, channels, *steps = padded.stride()
    shape = (*padded.shape[:2], *layer.kernel_size, *outputs.shape[2:])
    by_kernel = (step * far for step, far in zip(steps, layer.dilation, strict=True))
    by_position = (step * far for step, far in zip(steps, layer.stride, strict=True))
    return padded.as_strided(shape, (rows, channels, *by_kernel, *by_position))


def _weight_gradient(layer: Conv, padded: Tensor, gradients: Tensor, repeats: int = 1) -> Tensor:
    """(repeats * out, in / groups, *kernel), of a convolution of `repeats` times as many channels in and out."""
    none = [0] * len(layer.kernel_size)
    weight = gradients.new_empty((repeats * layer.out_channels, *layer.weight.shape[1:]))
    geometry = (layer.stride, none, layer.dilation, False, none, repeats * layer.groups)
    found = torch.ops.aten.convolution_backward(gradients, padded, weight, None, *geometry, (False, True, False))
    weight_gradient: Tensor = found[1]
    return weight_gradient


def _add_scaled(layer: Conv, padded: Tensor, gradients: Tensor) -> Callable[[Tensor, Tensor], None]:
    def add_scaled(factors: Tensor, out: Tensor) -> None:
        scaled = gradients * factors.view(-1, *(1 for _ in gradients.shape[1:]))
        out.view_as(layer.weight).add_(_weight_gradient(layer, padded, scaled))

    return add_scaled


def group_norm(layer: nn.GroupNorm, seen: Seen) -> Iterator[Share]:
    """Inputs and gradients (rows, channels, ...)."""
    x, g = (t.reshape(len(t), layer.num_channels, -1) for t in (seen.inputs, seen.gradients))
    summed = g.sum(2)
    if layer.weight.requires_grad:
        rows, channels, size = x.shape
        _, mean, scale = torch.native_group_norm(x, None, None, rows, channels, size, layer.num_groups, layer.eps)
        each_group = (rows, layer.num_groups, layer.num_channels // layer.num_groups)
        centered = (g * x).sum(2).view(each_group) - mean[..., None] * summed.view(each_group)
        scaled = centered * scale[..., None]
        yield instantiated(layer.weight, seen.by_unit(scaled, -1, layer.num_channels).sum(1))
    if layer.bias is not None and layer.bias.requires_grad:
        yield instantiated(layer.bias, seen.by_unit(summed, -1, layer.num_channels).sum(1))


def layer_norm(layer: nn.LayerNorm, seen: Seen) -> Iterator[Share]:
    """Inputs and gradients (rows, ..., *normalized shape)."""
    size = layer.weight.numel()
    if layer.weight.requires_grad:
        normal = functional.layer_norm(seen.inputs, layer.normalized_shape, None, None, layer.eps)
        yield instantiated(layer.weight, seen.by_unit(normal.mul_(seen.gradients), -1, size).sum(1))
    if layer.bias is not None and layer.bias.requires_grad:
        yield instantiated(layer.bias, seen.by_unit(seen.gradients, -1, size).sum(1))


def embedding(layer: nn.Embedding, seen: Seen) -> Iterator[Share]:
    """Inputs (rows, ...), gradients (rows, ..., features)."""
    words = seen.by_unit(seen.inputs, -1)
    g = seen.gradients.reshape(-1, layer.embedding_dim)
    if layer.padding_idx is not None:
        g = g * (words != layer.padding_idx).reshape(-1, 1)
    units = torch.arange(seen.num_units, device=g.device)[:, None]
    # what a unit contributes to a word is one vector, however often the word occurs in it
    pairs, which = torch.unique(units * layer.num_embeddings + words, return_inverse=True)
    gathered = g.new_zeros(len(pairs), layer.embedding_dim).index_add_(0, which.flatten(), g)
    unit, word = pairs // layer.num_embeddings, pairs % layer.num_embeddings
    squared = g.new_zeros(seen.num_units).index_add_(0, unit, torch.linalg.vector_norm(gathered, dim=1).square_())

    def add_scaled(factors: Tensor, out: Tensor) -> None:
        out.view_as(layer.weight).index_add_(0, word, gathered * factors[unit, None])

    yield Share(layer.weight, squared, add_scaled)
