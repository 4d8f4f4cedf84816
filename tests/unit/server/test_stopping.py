"""When a run ends before its last round."""

from __future__ import annotations

import numpy as np
import pytest

from fedplat.metrics import MetricSums
from fedplat.spec.model import Figure, StopSection
from fedplat_server.stopping import find_reason, kl_divergence


def history(*losses: float, key: str = "loss") -> list[tuple[int, dict[str, float]]]:
    return [(number, {key: value}) for number, value in enumerate(losses)]


def test_nothing_is_asked_and_nothing_stops() -> None:
    assert find_reason(StopSection(), history(1.0, 1.0, 1.0), elapsed_s=1e9) is None


@pytest.mark.parametrize(
    ("losses", "stops"),
    [((3, 2, 1), False), ((1, 2, 3), True), ((2, 1, 2), False), ((2, 1, 2, 1), True), ((1, 1, 1), True), ((1,), False)],
)
def test_patience_counts_evaluations_without_a_gain(losses: tuple[float, ...], stops: bool) -> None:
    reason = find_reason(StopSection(patience=2), history(*losses), 0)
    assert (reason is not None and reason.code == "patience") is stops


def test_small_gains_do_not_count() -> None:
    section = StopSection(patience=2, min_gain=0.1)
    assert find_reason(section, history(1.0, 0.95, 0.91), 0) is not None
    assert find_reason(section, history(1.0, 0.85, 0.7), 0) is None


def test_more_is_better_for_auroc() -> None:
    section = StopSection(metric=Figure.AUROC, patience=1)
    assert find_reason(section, history(0.8, 0.9, key="auroc"), 0) is None
    assert find_reason(section, history(0.9, 0.8, key="auroc"), 0) is not None


@pytest.mark.parametrize(("metric", "value", "stops"), [("loss", 0.1, True), ("loss", 0.3, False), ("f1", 0.3, True)])
def test_a_target_is_reached(metric: str, value: float, stops: bool) -> None:
    section = StopSection(metric=Figure(metric), target=0.2)
    assert (find_reason(section, history(value, key=metric), 0) is not None) is stops


def test_divergence_kl_and_the_clock() -> None:
    assert find_reason(StopSection(divergence=0.1), [(1, {"divergence": 0.05})], 0) is not None
    assert find_reason(StopSection(divergence=0.1), [(1, {"divergence": 0.5})], 0) is None
    assert find_reason(StopSection(kl=0.1), [(1, {"kl_divergence": 0.5})], 0) is not None
    assert find_reason(StopSection(kl=0.1), [(1, {})], 0) is None
    assert find_reason(StopSection(wall_clock_s=10), [], 11) is not None
    assert find_reason(StopSection(wall_clock_s=10), [], 9) is None


def scores(center: float) -> MetricSums:
    rng = np.random.default_rng(1)
    p = np.clip(rng.normal(center, 0.1, 500), 0, 1)
    return MetricSums.of_classes(p, (rng.random(500) < p).astype(np.int64), np.ones(500))


def test_kl_divergence_grows_with_the_difference_of_the_silos() -> None:
    same, far = kl_divergence([scores(0.5), scores(0.5)]), kl_divergence([scores(0.2), scores(0.8)])
    assert same is not None
    assert far is not None
    assert same < 0.01 < 0.3 < far
    assert kl_divergence([scores(0.5)]) is None
