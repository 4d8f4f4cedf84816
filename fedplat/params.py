"""Parameter groups and the layout of a model.

Shared parameters are sent and averaged; local ones stay in the silo; frozen ones are verified by hash. An update
is one flat float32 vector: the shared parameters in layout order, each in C order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Self

import numpy as np
import numpy.typing as npt

from fedplat.canonical import canonical_json, sha256_hex
from fedplat.errors import LayoutError
from fedplat.spec.model import ModelSection

Vector = npt.NDArray[np.float32]


class Group(StrEnum):
    """What happens to a parameter between rounds."""

    SHARED = "shared"
    LOCAL = "local"
    FROZEN = "frozen"


@dataclass(frozen=True)
class Parameter:
    """A tensor of the model by name, shape and dtype (as PyTorch writes it, without `torch.`)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Integer buffers (counters, indices) are never averaged."""
        return self.dtype.startswith(("float", "bfloat"))


@dataclass(frozen=True)
class Layout:
    """The parameters of a model with their groups, in the model's own order."""

    parameters: tuple[Parameter, ...]
    groups: tuple[Group, ...]

    @classmethod
    def assign(cls, parameters: Iterable[Parameter], model: ModelSection) -> Self:
        """Groups by the spec's patterns: frozen before local before shared. LayoutError if a pattern matches
        nothing, a parameter is in no group, or nothing is left to share."""
        known = tuple(parameters)
        _check_patterns(known, model)
        layout = cls(known, tuple(_group_of(p, model) for p in known))
        if not layout.size:
            raise LayoutError("no parameter is shared, so there is nothing to train together")
        return layout

    def names(self, group: Group) -> tuple[str, ...]:
        """The names in `group`, in layout order."""
        return tuple(p.name for p, g in zip(self.parameters, self.groups, strict=True) if g is group)

    @cached_property
    def shared(self) -> tuple[Parameter, ...]:
        """The shared parameters, in the order of the flat vector."""
        return tuple(p for p, g in zip(self.parameters, self.groups, strict=True) if g is Group.SHARED)

    @cached_property
    def size(self) -> int:
        """Number of elements of the flat vector."""
        return sum(p.size for p in self.shared)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, dtypes of shared and frozen parameters; local ones may differ."""
        kept = [
            [p.name, list(p.shape), p.dtype, g.value]
            for p, g in zip(self.parameters, self.groups, strict=True)
            if g is not Group.LOCAL
        ]
        return sha256_hex(canonical_json(kept))

    def split(self, vector: Vector) -> dict[str, Vector]:
        """Views of a flat vector, one a shared parameter. LayoutError if the length is wrong."""
        if vector.shape != (self.size,):
            raise LayoutError(f"a vector of {vector.size} elements does not fit a layout of {self.size}")
        views: dict[str, Vector] = {}
        start = 0
        for p in self.shared:
            views[p.name] = vector[start : start + p.size].reshape(p.shape)
            start += p.size
        return views

    def join(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Vector:
        """The flat float32 vector of the shared parameters in `arrays`; LayoutError if one does not fit."""
        vector = np.empty(self.size, dtype=np.float32)
        for name, view in self.split(vector).items():
            if name not in arrays:
                raise LayoutError(f"parameter {name!r} is missing")
            if arrays[name].shape != view.shape:
                raise LayoutError(f"parameter {name!r} has shape {arrays[name].shape}, not {view.shape}")
            view[...] = arrays[name]
        return vector


def _group_of(parameter: Parameter, model: ModelSection) -> Group:
    def listed(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(parameter.name, pattern) for pattern in patterns)

    if listed(model.frozen):
        return Group.FROZEN
    if listed(model.local) or not parameter.is_float:
        return Group.LOCAL
    if listed(model.shared):
        return Group.SHARED
    raise LayoutError(
        f"parameter {parameter.name!r} is in no group",
        hint="add a pattern for it to [model] shared, local or frozen",
    )


def _check_patterns(parameters: tuple[Parameter, ...], model: ModelSection) -> None:
    for group in Group:
        for pattern in getattr(model, group.value):
            if not any(fnmatchcase(p.name, pattern) for p in parameters):
                names = ", ".join(p.name for p in parameters[:8])
                raise LayoutError(
                    f"the pattern {pattern!r} in [model] {group} matches no parameter",
                    hint=f"the model has {names}{' ...' if len(parameters) > 8 else ''}",
                )
