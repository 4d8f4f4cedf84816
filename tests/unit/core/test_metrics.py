"""Sums of silos give the figures of all records together: compared with scikit-learn on the pooled data."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn import metrics as sk

from fedplat.errors import WireError
from fedplat.metrics import NUM_SCORE_BINS, MetricSums, add_sums, summarise

Floats = npt.NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)


def silos(rng: np.random.Generator, num_records: int) -> list[npt.NDArray[np.intp]]:
    """The records' numbers, cut at random into up to six silos, some of them perhaps empty."""
    cuts = np.sort(rng.integers(0, num_records + 1, size=rng.integers(0, 6)))
    return np.split(rng.permutation(num_records), cuts)


def pooled_classes(rng: np.random.Generator, scores: Floats, targets: npt.NDArray[np.int64]) -> MetricSums:
    losses = rng.random(len(targets))
    return add_sums(MetricSums.of_classes(scores[i], targets[i], losses[i]) for i in silos(rng, len(targets)))


@settings(deadline=None)
@given(SEEDS, st.integers(1, 200), st.booleans())
def test_two_classes(seed: int, num_records: int, as_table: bool) -> None:
    rng = np.random.default_rng(seed)
    targets = (rng.random(num_records) < rng.random()).astype(np.int64)
    scores = np.clip(rng.normal(0.3 + 0.4 * targets, 0.3), 0, 1)
    table = np.stack([1 - scores, scores], axis=1) if as_table else scores
    found = summarise(pooled_classes(rng, table, targets))
    predicted = table.argmax(axis=1) if as_table else (scores >= 0.5).astype(int)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted), abs=1e-12)
    if targets.any() or predicted.any():
        for name, figure in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            assert found[name] == pytest.approx(figure(targets, predicted, zero_division=0), abs=1e-12)
    else:
        assert not found.keys() & {"precision", "recall", "f1"}
    if 0 < targets.sum() < num_records:
        assert abs(found["auroc"] - sk.roc_auc_score(targets, scores)) <= found["auroc_bound"] + 1e-12
    else:
        assert "auroc" not in found


@settings(deadline=None)
@given(SEEDS, st.integers(1, 100), st.integers(3, 6))
def test_many_classes(seed: int, num_records: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, size=num_records)
    scores = rng.dirichlet(np.ones(num_classes), size=num_records)
    found = summarise(pooled_classes(rng, scores, targets))
    predicted = scores.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted), abs=1e-12)
    for name, figure in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        expected = figure(targets, predicted, average="macro", zero_division=0)
        assert found[name] == pytest.approx(expected, abs=1e-12)
    assert "auroc" not in found


@settings(deadline=None)
@given(SEEDS, st.integers(5, 200), st.floats(-100, 100))
def test_regression(seed: int, num_records: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.normal(offset, 2, size=num_records)
    predicted = targets + rng.normal(size=num_records)
    losses = (predicted - targets) ** 2
    parts = [MetricSums.of_values(predicted[i], targets[i], losses[i]) for i in silos(rng, num_records)]
    found = summarise(add_sums(parts))
    assert found["loss"] == pytest.approx(losses.mean())
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(targets, predicted))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(targets, predicted))
    # sums of squares cancel: the fewer records far from zero, the fewer digits are left
    assert found["r2"] == pytest.approx(sk.r2_score(targets, predicted), rel=1e-3, abs=1e-3)


def test_r2_of_a_constant_target_is_undefined() -> None:
    targets = np.full(10, 0.1)
    found = summarise(MetricSums.of_values(targets + 1, targets, np.ones(10)))
    assert "r2" not in found
    assert found["mae"] == pytest.approx(1)


def test_auroc_is_exact_when_no_pair_shares_a_bin() -> None:
    scores, targets = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    found = summarise(MetricSums.of_classes(scores, targets, np.zeros(4)))
    assert (found["auroc"], found["auroc_bound"]) == (0.75, 0)


def test_figures_are_plain_floats() -> None:
    """A database driver takes no numpy scalars."""
    scores, targets = np.array([0.1, 0.9]), np.array([0, 1])
    for sums in (
        MetricSums.of_classes(scores, targets, np.zeros(2)),
        MetricSums.of_classes(np.eye(3), np.arange(3), np.zeros(3)),
        MetricSums.of_values(scores, scores, np.zeros(2)),
    ):
        assert {type(figure) for figure in summarise(sums).values()} == {float}


def test_auroc_bound_is_tight() -> None:
    scores = np.array([0.5, 0.5 + 0.4 / NUM_SCORE_BINS])
    for targets in (np.array([0, 1]), np.array([1, 0])):
        found = summarise(MetricSums.of_classes(scores, targets, np.zeros(2)))
        assert abs(found["auroc"] - sk.roc_auc_score(targets, scores)) == found["auroc_bound"] == 0.5


def test_over_a_thousand_classes_only_accuracy() -> None:
    scores = np.eye(1001)
    targets = np.arange(1001)
    targets[0] = 5
    sums = add_sums([MetricSums.of_classes(scores, targets, np.zeros(1001))] * 2)
    assert summarise(sums) == {"loss": 0, "accuracy": 1000 / 1001}


def test_counts_add_up_exactly_and_totals_in_order() -> None:
    parts = [MetricSums(counts={"examples": [2**52]}, totals={"loss": x}) for x in (0.1, 0.2, 0.3)]
    total = add_sums(parts)
    assert total.num_examples == 3 * 2**52
    assert total.totals["loss"] == (0.1 + 0.2) + 0.3


def test_nothing_to_say_without_records() -> None:
    none = np.zeros(0, dtype=np.int64)
    empty = MetricSums.of_classes(np.zeros(0), none, np.zeros(0))
    assert summarise(empty) == {}
    with pytest.raises(WireError, match="no metric sums"):
        add_sums([])
    one = MetricSums.of_classes(np.array([0.9]), np.array([1]), np.array([0.1]))
    assert summarise(add_sums([empty, one])) == summarise(one)


def test_different_shapes_do_not_add() -> None:
    two = MetricSums.of_classes(np.eye(2), np.arange(2), np.zeros(2))
    three = MetricSums.of_classes(np.eye(3), np.arange(3), np.zeros(3))
    values = MetricSums.of_values(np.ones(2), np.ones(2), np.zeros(2))
    for a, b in ((two, three), (two, values), (values, three)):
        with pytest.raises(WireError, match="cannot be added"):
            add_sums([a, b])


VALUES = {"absolute_error": 1.0, "squared_error": 1.0, "target": 0.0, "target_squared": 1.0}
BINS = [0] * (NUM_SCORE_BINS - 1)


@pytest.mark.parametrize(
    ("counts", "totals"),
    [
        ({}, {}),
        ({"examples": []}, {}),
        ({"examples": [1, 2]}, {}),
        ({"examples": [-1]}, {}),
        ({"examples": [2**53]}, {}),
        ({"examples": [0.5]}, {}),
        ({"examples": [1]}, {"loss": math.nan}),
        ({"examples": [1]}, {"loss": math.inf}),
        ({"examples": [1]}, {"loss": 1e200}),
        ({"examples": [1], "Mrs Miller": [1]}, {}),
        ({"examples": [1]}, {"Mrs Miller": 1.0}),
        ({"examples": [1]} | {f"n{i}": [1] for i in range(40)}, {}),
        ({"examples": [1], "confusion": [1, 0, 0]}, {}),
        ({"examples": [1], "confusion": [1]}, {}),
        ({"examples": [1], "confusion": []}, {}),
        ({"examples": [2], "confusion": [1, 0, 0, 0]}, {}),
        ({"examples": [2], "confusion": [3, 0, 0, -1]}, {}),
        ({"examples": [1], "correct": [2]}, {}),
        ({"examples": [1], "correct": []}, {}),
        ({"examples": [1], "positive_scores": [*BINS, 1], "negative_scores": [*BINS, 0]}, {}),
        ({"examples": [1], "confusion": [0, 0, 0, 1], "positive_scores": [*BINS, 1]}, {}),
        ({"examples": [1], "confusion": [0, 0, 0, 1], "positive_scores": [1], "negative_scores": [0]}, {}),
        (
            {"examples": [1], "confusion": [0, 0, 0, 1], "positive_scores": [*BINS, 0], "negative_scores": [*BINS, 1]},
            {},
        ),
        ({"examples": [1]}, {"squared_error": 1.0}),
        ({"examples": [1]}, VALUES | {"squared_error": -1.0}),
        ({"examples": [1]}, VALUES | {"absolute_error": -1.0}),
    ],
)
def test_hostile_sums_are_refused(counts: Mapping[str, list[int]], totals: Mapping[str, float]) -> None:
    with pytest.raises(ValidationError):
        MetricSums.model_validate({"counts": counts, "totals": totals})


totals_at_the_edge = st.sampled_from([0.0, 1.0, 1e150, 5e-324])


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(VALUES)), totals_at_the_edge, min_size=4),
    st.integers(0, 2**53 - 1),
    st.lists(st.integers(0, 2**50), min_size=4, max_size=4),
)
def test_accepted_sums_never_break_the_summary(totals: dict[str, float], examples: int, cells: list[int]) -> None:
    regression = MetricSums(counts={"examples": [examples]}, totals=totals)
    classes = MetricSums(counts={"examples": [sum(cells)], "confusion": cells}, totals={"loss": -1e150})
    for sums in (regression, classes):
        figures = summarise(add_sums([sums] * 100))
        assert all(math.isfinite(f) for f in figures.values()), figures


def test_a_loss_that_is_not_finite_cannot_be_made() -> None:
    with pytest.raises(ValidationError, match="loss"):
        MetricSums.of_classes(np.array([math.nan]), np.array([1]), np.array([math.nan]))


CELLS = {"examples": [5], "confusion": [-3, 4, 1, 3]}


def test_noised_counts_may_be_negative_and_still_add_up() -> None:
    noised = MetricSums(counts=CELLS, totals={"loss": -0.5}, noised=True)
    total = noised + noised
    assert (total.noised, total.counts) == (True, {"examples": [10], "confusion": [-6, 8, 2, 6]})
    assert MetricSums.model_validate_json(total.model_dump_json()) == total
    assert summarise(total)["accuracy"] == 0.0
    assert summarise(total)["loss"] == -0.1
    assert MetricSums(counts={"examples": [5], "correct": [7]}, noised=True).num_examples == 5
    assert summarise(MetricSums(counts={"examples": [5], "correct": [7]}, noised=True)) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("counts", "noised"),
    [
        (CELLS, False),
        ({"examples": [5], "correct": [-1]}, False),
        ({"examples": [-5], "correct": [1]}, True),
        ({"examples": [6], "confusion": [-3, 4, 1, 3]}, True),
    ],
    ids=["cells", "correct", "examples", "another sum"],
)
def test_what_noise_does_not_explain_is_refused(counts: dict[str, list[int]], noised: bool) -> None:
    with pytest.raises(ValidationError):
        MetricSums(counts=counts, noised=noised)


def test_noised_sums_are_never_added_to_others() -> None:
    exact = MetricSums(counts={"examples": [5], "correct": [4]})
    with pytest.raises(WireError):
        exact + exact.model_copy(update={"noised": True})
