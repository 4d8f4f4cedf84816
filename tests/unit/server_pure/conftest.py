from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest

with warnings.catch_warnings():  # typer, which flwr imports, still uses what click has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.serverapp.strategy  # noqa: F401

from fedplat.params import Group, Layout, Parameter, Vector
from fedplat.spec.model import RunSpec


@pytest.fixture
def layout() -> Layout:
    """Shared parameters with two, one, no and zero dimensions' worth of values, around a local one."""
    parameters = (
        Parameter("body.weight", (4, 3), "float32"),
        Parameter("body.running_mean", (4,), "float32"),
        Parameter("body.bias", (4,), "bfloat16"),
        Parameter("temperature", (), "float16"),
        Parameter("empty", (0, 2), "float32"),
        Parameter("a.head", (5,), "float64"),
    )
    groups = [Group.SHARED] * len(parameters)
    groups[1] = Group.LOCAL
    return Layout(parameters, tuple(groups))


@pytest.fixture
def spec() -> Callable[..., RunSpec]:
    def make(**strategy: object) -> RunSpec:
        return RunSpec.model_validate(
            {
                "name": "heart",
                "task": {"name": "tabular"},
                "data": {"name": "heart"},
                "rounds": {"count": 5},
                "training": {"steps": 1},
                "strategy": strategy,
            }
        )

    return make


@pytest.fixture
def vector(layout: Layout) -> Callable[..., Vector]:
    """A random vector of the layout's length, the same for the same seed."""

    def make(seed: int, scale: float = 1.0) -> Vector:
        return (np.random.default_rng(seed).normal(size=layout.size) * scale).astype(np.float32)

    return make
