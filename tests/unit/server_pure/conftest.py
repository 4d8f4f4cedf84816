from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

with warnings.catch_warnings():  # typer, which flwr imports, still uses what click has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.serverapp.strategy  # noqa: F401

from fedplat import bufferfiles
from fedplat.bufferfiles import Region
from fedplat.params import Group, Layout, Parameter, Vector
from fedplat.spec.model import Precision, RunSpec
from fedplat.wire import buffers
from fedplat.wire.buffers import to_bytes
from fedplat_server import road
from fedplat_server.vectors import StoredVector
from tests.support.roadscene import PIECE, Scene

Stored = Callable[..., StoredVector]


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


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """A vector as it lies in a file, behind something else."""
    made = 0

    def write(vector: Vector, precision: Precision = Precision.FP32) -> StoredVector:
        nonlocal made
        made += 1
        path, data = tmp_path / f"{made}.vector", to_bytes(vector, precision)
        path.write_bytes(b"head" + bytes(data))
        return StoredVector(Region(path, 4, len(data)), precision)

    return write


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A road with small pieces."""
    for module in (buffers, bufferfiles, road):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE)
    made = Scene(tmp_path)
    yield made
    made.road.close("run")
