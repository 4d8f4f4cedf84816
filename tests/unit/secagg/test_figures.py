"""Figures that ride behind the update: exact through any sum, and refused where they do not fit."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedplat.errors import WireError
from fedplat.metrics import MetricSums, add_sums
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.figures import Figures, FiguresFormat, part_of, room_for, vector_format
from fedplat.secagg.fixedpoint import limit_for

EMPTY = MetricSums(counts={"examples": [0], "confusion": [0, 0, 0, 0]}, totals={"loss": 0.0, "extra": 0.0})
FORMAT = FiguresFormat(EMPTY)
KEY = bytes(32)


def sums(examples: int, loss: float, extra: float = 0.0) -> MetricSums:
    return MetricSums(
        counts={"examples": [examples], "confusion": [examples, 0, 0, 0]}, totals={"loss": loss, "extra": extra}
    )


TOTALS = st.floats(-1e20, 1e20) | st.floats(-10, 10)
SILO = st.builds(
    Figures,
    weight=st.integers(1, limit_for(64)),
    num_clipped=st.integers(0, limit_for(64)),
    norm=st.floats(0, 1e12),
    evaluated=st.none() | st.builds(sums, st.integers(0, 10**6), TOTALS, TOTALS),
    trained=st.none() | st.builds(sums, st.integers(0, 10**6), TOTALS, TOTALS),
)


@given(st.lists(SILO, min_size=1, max_size=64))
def test_the_sum_of_what_is_encoded_is_the_sum_of_the_figures(silos: list[Figures]) -> None:
    total = np.zeros(FORMAT.length, np.uint32)
    for silo in silos:
        total += FORMAT.encode(silo, limit_for(64), secrets.token_bytes(32))
    found = FORMAT.decode(total, len(silos))
    assert found.weight == sum(s.weight for s in silos)
    assert found.num_clipped == sum(s.num_clipped for s in silos)
    assert found.norm == pytest.approx(math.fsum(s.norm for s in silos), rel=1e-12, abs=1e-12)
    for name in ("evaluated", "trained"):
        given_sums = [s for silo in silos if (s := getattr(silo, name)) is not None]
        assert getattr(found, f"num_{name}") == len(given_sums)
        summed = getattr(found, name)
        if len(given_sums) < len(silos):
            assert summed is None, "a sum over those that give theirs would tell them"
            continue
        assert summed.counts == add_sums(given_sums).counts
        for key in EMPTY.totals:
            exact = math.fsum(s.totals[key] for s in given_sums)
            assert summed.totals[key] == pytest.approx(exact, rel=1e-12, abs=64 * 2.0**-48)


def test_the_figures_of_the_only_silo_that_gives_any_are_hidden_by_the_others() -> None:
    mine = FORMAT.encode(Figures(weight=1, evaluated=sums(5, 1.0), trained=sums(7, 2.0)), limit_for(4), KEY)
    hides = Figures(weight=1, trained=sums(1, 1.0))
    others = [FORMAT.encode(hides, limit_for(4), key) for key in (bytes([1]) * 32, bytes([2]) * 32)]
    total = mine + others[0] + others[1]
    found = FORMAT.decode(total, 3)
    assert (found.evaluated, found.num_evaluated, found.num_trained) == (None, 1, 3)
    assert found.trained is not None
    assert found.trained.num_examples == 9
    assert not np.array_equal(others[0], others[1]), "noise of each silo's own, which does not cancel"
    readable = FORMAT.encode(Figures(weight=3, evaluated=sums(5, 1.0)), limit_for(4), KEY)
    assert not set(total[10:20].tolist()) & set(readable[10:20].tolist())


def test_the_largest_figures_of_64_silos_do_not_wrap() -> None:
    limit = limit_for(64)
    each = Figures(limit, limit, 1e20, sums(limit, -1e27), sums(limit, 1e27))
    total = np.zeros(FORMAT.length, np.uint32)
    for _ in range(64):
        total += FORMAT.encode(each, limit, KEY)
    found = FORMAT.decode(total, 64)
    assert found.weight == 64 * limit
    assert found.evaluated is not None
    assert found.evaluated.totals["loss"] == pytest.approx(-64e27)


def test_what_does_not_fit_is_refused() -> None:
    limit = limit_for(4)
    for figures, refusal in (
        (Figures(evaluated=sums(limit + 1, 0.0)), Refusal.COUNT_TOO_LARGE),
        (Figures(norm=1e40), Refusal.COUNT_TOO_LARGE),
        (Figures(trained=MetricSums(counts={"examples": [3]})), Refusal.FIGURES_CHANGED),
    ):
        with pytest.raises(RefusedError) as refused:
            FORMAT.encode(figures, limit, KEY)
        assert refused.value.refusal is refusal
    assert FORMAT.encode(Figures(weight=1, num_clipped=10**12), limit, KEY)[1] == limit, "a count that may saturate"


def test_a_sum_that_makes_no_sense_is_refused() -> None:
    honest = FORMAT.encode(Figures(weight=3, evaluated=sums(5, 1.0)), limit_for(4), KEY)
    negative, weightless, odd = honest.copy(), honest.copy(), honest.copy()
    negative[1] = 2**32 - 1
    weightless[0] = 0
    odd[10] += 1  # the confusion matrix does not fit the examples any more
    for broken in (negative, weightless, odd):
        with pytest.raises(WireError):
            FORMAT.decode(broken, 1)


def test_a_weight_is_a_part_of_the_limit() -> None:
    limit = limit_for(4)
    assert part_of(limit, 7.0, 7.0) == limit
    assert part_of(limit, 1.0, 4.0) == limit // 4
    assert part_of(limit, 1.0, 1e18) == 1, "whoever takes part counts"
    for weight in (8.0, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(RefusedError) as refused:
            part_of(limit, weight, 7.0)
        assert refused.value.refusal is Refusal.WEIGHT_TOO_LARGE


def test_there_is_room_for_every_roster() -> None:
    assert [room_for(n) for n in (2, 3, 4, 5, 8, 9, 33, 64)] == [4, 4, 4, 8, 8, 16, 64, 64]
    with_update, without = (vector_format(5, size, 8.0, FORMAT) for size in (10, 0))
    assert with_update.length == 10 + FORMAT.length
    assert without.length == FORMAT.length
    assert with_update.fields() != without.fields()


def test_noised_counts_keep_their_sign_through_the_sum() -> None:
    nothing = MetricSums(counts={"examples": [0], "correct": [0]}, totals={"loss": 0.0}, noised=True)
    layout, limit = FiguresFormat(nothing), limit_for(64)
    counts = [-limit, limit, -3, 1] + [-limit] * 60
    silos = [
        Figures(
            weight=1,
            evaluated=MetricSums(counts={"examples": [2], "correct": [n]}, totals={"loss": -0.5}, noised=True),
            trained=nothing,
        )
        for n in counts
    ]
    total = np.zeros(layout.length, np.uint32)
    for silo in silos:
        total += layout.encode(silo, limit, KEY)
    found = layout.decode(total, 64).evaluated
    assert found is not None
    assert (found.noised, found.counts) == (True, {"examples": [128], "correct": [sum(counts)]})
    assert found.totals["loss"] == -32.0
    with pytest.raises(RefusedError):
        layout.encode(replace(silos[0], evaluated=found), limit - 1, KEY)
    with pytest.raises(RefusedError):
        FORMAT.encode(replace(silos[0], trained=None), limit, KEY)
