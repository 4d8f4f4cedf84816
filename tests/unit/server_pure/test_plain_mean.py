from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedplat.errors import LayoutError
from fedplat.params import Vector
from fedplat_server.aggregation import Update, UpdateError, plain, update_norm, weighted_mean

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
WEIGHTS = st.one_of(st.integers(1, 10**9), st.floats(1e-300, 1e300))


@st.composite
def many_updates(draw: st.DrawFn) -> list[Update]:
    size = draw(st.integers(1, 40))
    num_silos = draw(st.integers(1, 6))
    vectors = [draw(arrays(np.float32, size, elements=FINITE)) for _ in range(num_silos)]
    return [Update(f"silo-{i}", draw(WEIGHTS), vector) for i, vector in enumerate(vectors)]


@given(many_updates(), st.integers(1, 40))
def test_it_is_numpys_weighted_average_whatever_the_size_of_a_block(updates: list[Update], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "BLOCK", block)
        mean, total = weighted_mean(updates)
    weights = [update.weight for update in updates]
    stacked = np.stack([update.vector for update in updates]).astype(np.float64)
    expected = np.average(stacked, axis=0, weights=np.array(weights) / sum(weights))
    tolerance = np.abs(stacked).max() * 1e-12 + np.abs(expected) * 2.0**-23 + 1e-45
    assert mean.dtype == np.float32
    assert (np.abs(mean - expected) <= tolerance).all()
    assert total == pytest.approx(sum(weights))


@given(arrays(np.float32, 7, elements=FINITE), st.lists(WEIGHTS, min_size=1, max_size=9))
def test_the_mean_of_equal_updates_is_that_update(vector: Vector, weights: list[float]) -> None:
    mean, _ = weighted_mean([Update(f"silo-{i}", weight, vector) for i, weight in enumerate(weights)])
    assert mean.tobytes() == (vector + np.float32(0)).tobytes()  # -0 becomes 0


def test_a_result_that_spans_blocks_does_not_depend_on_who_came_first(tmp_path: Path) -> None:
    size = 2 * plain.BLOCK + 17
    arrived: dict[str, Update] = {}
    for seed, silo in [(3, "c"), (1, "a"), (2, "b")]:
        path = tmp_path / f"{silo}.npy"
        np.save(path, np.random.default_rng(seed).normal(size=size).astype(np.float32))
        arrived[silo] = Update(silo, seed * 10, np.load(path, mmap_mode="r"))
    mean, total = weighted_mean([arrived[silo] for silo in ("a", "b", "c")])

    in_memory = [np.random.default_rng(seed).normal(size=size).astype(np.float32) for seed in (1, 2, 3)]
    again, _ = weighted_mean([Update("x", 10 * (i + 1), v) for i, v in enumerate(in_memory)])
    assert mean.tobytes() == again.tobytes()
    assert total == 60.0
    by_hand = sum(v.astype(np.float64) * (10 * (i + 1) / 60) for i, v in enumerate(in_memory))
    assert mean.tobytes() == np.asarray(by_hand).astype(np.float32).tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, plain.BLOCK, -1])
def test_a_value_that_is_not_finite_is_refused_by_name(value: float, position: int) -> None:
    good, bad = np.zeros((2, plain.BLOCK + 5), dtype=np.float32)
    bad[position] = value
    with pytest.raises(UpdateError, match=r"'berlin' has values that are not finite") as caught:
        weighted_mean([Update("paris", 5, good), Update("berlin", 1e-300, bad), Update("rome", 1, good)])
    assert caught.value.silo == "berlin"


def test_two_infinities_that_cancel_are_refused() -> None:
    infinite = np.array([np.inf], dtype=np.float32)
    with pytest.raises(UpdateError, match="'a' has values"):
        weighted_mean([Update("a", 1, infinite), Update("b", 1, -infinite)])


@pytest.mark.parametrize("weight", [0, -1, np.nan, np.inf])
def test_a_weight_that_is_not_positive_is_refused_by_name(weight: float) -> None:
    vector = np.ones(3, dtype=np.float32)
    with pytest.raises(UpdateError, match="'b' has weight"):
        weighted_mean([Update("a", 1, vector), Update("b", weight, vector)])


@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        (np.ones(4, dtype=np.float32), "has shape (4,), not (3,)"),
        (np.ones((3, 1), dtype=np.float32), "has shape (3, 1), not (3,)"),
        (np.ones(3), "is float64, not float32"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_by_name(vector: Vector, problem: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(f"silo 'b' {problem}")):
        weighted_mean([Update("a", 1, np.ones(3, dtype=np.float32)), Update("b", 1, vector)])


def test_no_updates_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no updates"):
        weighted_mean([])


@given(arrays(np.float32, st.integers(0, 50), elements=FINITE))
def test_the_norm_is_numpys(vector: Vector) -> None:
    assert update_norm(vector) == pytest.approx(float(np.linalg.norm(vector.astype(np.float64))), rel=1e-12)
