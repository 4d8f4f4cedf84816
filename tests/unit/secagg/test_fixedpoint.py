from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplat.errors import WireError
from fedplat.secagg import fixedpoint
from fedplat.secagg.errors import Refusal
from fedplat.secagg.fixedpoint import Segment, VectorFormat, counts_to_words, dequantise, quantise, words_to_counts
from fedplat.secagg.keys import rounding_key
from fedplat.secagg.prg import CHUNK, Words
from tests.unit.secagg.world import refused

KEY = rounding_key(b"s" * 32, "ab" * 32, 1)


def quantised(values: npt.NDArray[np.float32], limit: int, bound: float = 1.0, key: bytes = KEY) -> Words:
    out = np.empty(len(values), np.uint32)
    quantise(values, out, bound=bound, limit=limit, rounding_key=key, offset=0)
    return out


def total(parts: list[Words]) -> Words:
    added: Words = np.sum(parts, axis=0, dtype=np.uint32)
    return added


def test_sums_at_the_bound_fit() -> None:
    """Every silo at +c, every silo at -c, beyond them, for every number of silos."""
    edges = np.array([0.5, -0.5, 7.0, -7.0, 0.0], np.float32)
    for n_max in range(2, 65):
        limit = fixedpoint.limit_for(n_max)
        parts = [quantised(edges, limit, 0.5, bytes([i]) * 32) for i in range(n_max)]
        found = dequantise(total(parts), bound=0.5, limit=limit)
        assert np.abs(found - n_max * np.array([0.5, -0.5, 0.5, -0.5, 0.0])).max() < n_max * 0.5 / limit
        assert all((part.view(np.int32) <= limit).all() and (part.view(np.int32) >= -limit).all() for part in parts)


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=60)
@given(
    st.integers(2, 64),
    st.floats(1e-6, 1e6),
    st.lists(st.lists(FINITE, min_size=5, max_size=5), min_size=1, max_size=5),
    st.binary(min_size=32, max_size=32),
)
def test_a_sum_is_within_its_error_bound(n_max: int, bound: float, rows: list[list[float]], key: bytes) -> None:
    """Each silo's part is off by less than c / M."""
    limit = fixedpoint.limit_for(n_max)
    rows = rows[:n_max]
    values = np.array(rows, np.float32)
    found = dequantise(total([quantised(v, limit, bound, key) for v in values]), bound=bound, limit=limit)
    wanted = np.clip(values.astype(np.float64), -bound, bound).sum(axis=0)
    assert (np.abs(found - wanted) <= len(rows) * bound / limit * (1 + 1e-6)).all()


def test_rounding_has_no_bias() -> None:
    """The mean of many roundings of a value between two steps is the value."""
    limit = fixedpoint.limit_for(64)
    values = np.full(200_000, np.float32(100.25 / limit))
    found = quantised(values, limit).view(np.int32)
    assert set(found.tolist()) == {100, 101}
    exact = float(values[0]) * limit
    assert abs(found.mean() - exact) < 6 * 0.5 / math.sqrt(len(values))


def test_rounding_is_the_same_when_a_round_is_repeated_and_in_parts() -> None:
    values = np.random.default_rng(0).normal(0, 0.3, 2 * CHUNK + 11).astype(np.float32)
    whole = quantised(values, 1000)
    assert (whole == quantised(values, 1000)).all()
    assert (whole != quantised(values, 1000, key=rounding_key(b"s" * 32, "ab" * 32, 2))).any()
    parts = np.empty_like(whole)
    for start, stop in [(0, 7), (7, CHUNK + 3), (CHUNK + 3, len(values))]:
        quantise(values[start:stop], parts[start:stop], bound=1.0, limit=1000, rounding_key=KEY, offset=start)
    assert (whole == parts).all()


def test_the_update_may_be_quantised_in_its_own_memory() -> None:
    values = np.random.default_rng(0).normal(0, 0.6, CHUNK + 11).astype(np.float32)
    wanted = quantised(values, 1000)
    num_clipped = quantise(values, values.view(np.uint32), bound=1.0, limit=1000, rounding_key=KEY, offset=0)
    assert (values.view(np.uint32) == wanted).all()
    assert 0 < num_clipped < len(values)


def test_clipped_coordinates_are_counted() -> None:
    values = np.array([0.5, -0.5, 0.50001, -9, 0], np.float32)
    assert quantise(values, np.empty(5, np.uint32), bound=0.5, limit=9, rounding_key=KEY, offset=0) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    values = np.array([0.0, value], np.float32)
    refused(Refusal.UPDATE_NOT_FINITE, quantised, values, 1000)


@given(st.integers(2, 64), st.lists(st.integers(0, 2**33), max_size=4))
def test_counts_are_exact_or_refused(n_max: int, counts: list[int]) -> None:
    limit = fixedpoint.limit_for(n_max)
    if max(counts, default=0) > limit:
        refused(Refusal.COUNT_TOO_LARGE, counts_to_words, counts, limit)
    else:
        words = [counts_to_words(counts, limit)] * n_max
        assert words_to_counts(total(words)) == [n_max * count for count in counts]


def test_negative_counts() -> None:
    refused(Refusal.COUNT_TOO_LARGE, counts_to_words, [-1], 10)
    with pytest.raises(WireError, match="negative"):
        words_to_counts(np.array([2**31], np.uint32))


def test_formats_that_cannot_be_masked() -> None:
    for n_max in (1, 65):
        with pytest.raises(WireError, match="2 to 64"):
            VectorFormat(n_max, ())
    for size, bound in [(-1, None), (1, 0.0), (1, -1.0), (1, math.inf), (1, math.nan)]:
        with pytest.raises(WireError, match="segment"):
            Segment(size, bound)


def test_a_format_is_told_by_its_fields() -> None:
    formats = [
        VectorFormat(4, (Segment(3, 1.0), Segment(1, None))),
        VectorFormat(4, (Segment(3, 1.0), Segment(1, 1.0))),
        VectorFormat(4, (Segment(2, 1.0), Segment(2, None))),
        VectorFormat(5, (Segment(3, 1.0), Segment(1, None))),
        VectorFormat(4, (Segment(3, 1.0 + 2**-52), Segment(1, None))),
        VectorFormat(4, (Segment(3, 1.0), Segment(1, None), Segment(0, None))),
    ]
    assert len({f.fields() for f in formats}) == len(formats)
    assert (formats[0].length, formats[0].limit) == (4, (2**31 - 1) // 4)
