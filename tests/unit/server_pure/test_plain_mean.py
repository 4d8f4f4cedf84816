from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedplat.bufferfiles import Region
from fedplat.params import Vector
from fedplat.spec.model import Precision
from fedplat_server import vectors
from fedplat_server.aggregation import Update, UpdateError, WeightedMean
from fedplat_server.vectors import BLOCK, StoredVector

Stored = Callable[..., StoredVector]
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
WEIGHTS = st.one_of(st.integers(1, 10**9), st.floats(1e-300, 1e300))
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@st.composite
def many_updates(draw: st.DrawFn) -> list[tuple[float, Vector]]:
    size = draw(st.integers(1, 40))
    num_silos = draw(st.integers(1, 6))
    return [(draw(WEIGHTS), draw(arrays(np.float32, size, elements=FINITE))) for _ in range(num_silos)]


def whole(mean: WeightedMean) -> Vector:
    """All blocks, each where it says that it lies."""
    parts: list[Vector] = []
    for block, part in mean.blocks():
        assert (block.start, block.stop - block.start) == (sum(map(len, parts)), len(part))
        parts.append(part)
    return np.concatenate(parts)


def mean_of(stored: Stored, *updates: tuple[str, float, Vector]) -> WeightedMean:
    return WeightedMean([Update(silo, weight, stored(vector)) for silo, weight, vector in updates])


@one_folder
@given(many_updates(), st.integers(1, 40))
def test_it_is_numpys_weighted_average_whatever_the_size_of_a_block(
    stored: Stored, updates: list[tuple[float, Vector]], block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", block)
        averaged = mean_of(stored, *((f"silo-{i}", w, v) for i, (w, v) in enumerate(updates)))
        mean = whole(averaged)
    weights = [weight for weight, _ in updates]
    stacked = np.stack([vector for _, vector in updates]).astype(np.float64)
    expected = np.average(stacked, axis=0, weights=np.array(weights) / sum(weights))
    tolerance = np.abs(stacked).max() * 1e-12 + np.abs(expected) * 2.0**-23 + 1e-45
    assert mean.dtype == np.float32
    assert (np.abs(mean - expected) <= tolerance).all()
    assert averaged.total_weight == pytest.approx(sum(weights))
    norms = [w / sum(weights) * np.linalg.norm(v) for w, v in zip(weights, stacked, strict=True)]
    assert averaged.norm == pytest.approx(float(np.linalg.norm(mean.astype(np.float64))), rel=1e-12)
    assert averaged.weighted_norms == pytest.approx(norms, rel=1e-9)
    if sum(norms) > 1e-100:  # below that the squares vanish
        assert averaged.divergence == pytest.approx(averaged.norm / sum(norms), rel=1e-9)


@one_folder
@given(arrays(np.float32, 7, elements=FINITE), st.lists(WEIGHTS, min_size=1, max_size=9))
def test_the_mean_of_equal_updates_is_that_update(stored: Stored, vector: Vector, weights: list[float]) -> None:
    mean = whole(mean_of(stored, *((f"silo-{i}", weight, vector) for i, weight in enumerate(weights))))
    assert mean.tobytes() == (vector + np.float32(0)).tobytes()  # -0 becomes 0


@pytest.mark.parametrize("precision", Precision)
def test_a_large_mean_is_the_same_sum_in_float64_in_the_order_of_the_roster(
    stored: Stored, precision: Precision
) -> None:
    weights = {"a": 10.0, "b": 20.0, "c": 31.0}
    size = 2 * BLOCK + 17
    files = {s: stored(np.random.default_rng(ord(s)).normal(size=size), precision) for s in ("c", "a", "b")}
    averaged = WeightedMean([Update(silo, weight, files[silo]) for silo, weight in weights.items()])
    mean = whole(averaged)

    by_hand = np.zeros(size)
    for silo, weight in weights.items():
        data = np.fromfile(files[silo].region.path, np.uint8)[4:]
        if precision is Precision.BF16:  # the upper half of each float32
            halves = np.zeros((size, 4), np.uint8)
            halves[:, 2:] = data.reshape(size, 2)
            data = halves.ravel()
        by_hand += data.view("<f4").astype(np.float64) * (weight / 61)
    assert mean.tobytes() == by_hand.astype(np.float32).tobytes()
    assert averaged.total_weight == 61.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, BLOCK, -1])
def test_a_value_that_is_not_finite_is_refused_by_name(stored: Stored, value: float, position: int) -> None:
    good, bad = np.zeros((2, BLOCK + 5), dtype=np.float32)
    bad[position] = value
    with pytest.raises(UpdateError, match=r"'berlin' has values that are not finite") as caught:
        whole(mean_of(stored, ("paris", 5, good), ("berlin", 1e-300, bad), ("rome", 1, good)))
    assert caught.value.silo == "berlin"


def test_two_infinities_that_cancel_are_refused(stored: Stored) -> None:
    infinite = np.array([np.inf], dtype=np.float32)
    with pytest.raises(UpdateError, match="'a' has values"):
        whole(mean_of(stored, ("a", 1, infinite), ("b", 1, -infinite)))


@pytest.mark.parametrize("weight", [0, -1, np.nan, np.inf])
def test_a_weight_that_is_not_positive_is_refused_by_name(stored: Stored, weight: float) -> None:
    vector = np.ones(3, dtype=np.float32)
    with pytest.raises(UpdateError, match="'b' has weight"):
        mean_of(stored, ("a", 1, vector), ("b", weight, vector))


def test_a_vector_that_does_not_fit_is_refused_by_name(stored: Stored) -> None:
    with pytest.raises(UpdateError, match=re.escape("silo 'b' has 4 elements, not 3")):
        mean_of(stored, ("a", 1, np.ones(3, np.float32)), ("b", 1, np.ones(4, np.float32)))


def test_a_file_that_has_become_shorter_is_an_error_and_not_a_shorter_mean(stored: Stored) -> None:
    updates = [Update("a", 1, stored(np.ones(9))), Update("b", 1, stored(np.ones(9)))]
    with updates[1].vector.region.path.open("r+b") as file:
        file.truncate(4 + 35)
    with pytest.raises(OSError, match="has become shorter"):
        whole(WeightedMean(updates))


def test_no_updates_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no updates"):
        WeightedMean([])


@given(size=st.integers(0, 60), block=st.integers(1, 70), precision=st.sampled_from(Precision))
def test_blocks_cover_a_vector_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, size: int, block: int, precision: Precision
) -> None:
    path: Path = tmp_path_factory.mktemp("v") / "v"
    path.write_bytes(bytes(range(size * precision.item_bytes)))
    vector = StoredVector(Region(path, 0, size * precision.item_bytes), precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "BLOCK", block)
        parts = list(vector.blocks())
    assert vector.size == size
    assert all(len(part) == block for part in parts[:-1])
    assert b"".join(part.tobytes() for part in parts) == vector.vector().tobytes()
