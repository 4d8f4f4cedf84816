"""Noised metrics: what each unit adds is bounded, the noise is the claimed one, and the figures have no bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from fedplat.metrics import MetricSums, summarise
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.examples import Datasets, TensorExamples
from fedplat_silo.trainer.dp import metrics
from fedplat_silo.trainer.dp.metrics import NoisedMetrics, as_sums, released_part, whole
from tests.unit.dp.world import ALONE, Classes, Toy, make_spec

NOISE = 4.0
CLIP = 3.0
NOISED = {"metrics": "noised", "metrics_noise_multiplier": NOISE}
PATIENTS = torch.tensor([0, 1, 0, 2, 2, 2, 3, 0])


def data(outputs: Tensor, targets: Tensor | None = None, patients: Tensor | None = None) -> Datasets:
    given = torch.zeros(len(outputs), dtype=torch.int64) if targets is None else targets
    examples = TensorExamples(outputs, given, patients=patients)
    return Datasets(examples, examples)


def make(found: Datasets, unit: str = "record", task: type[Toy] = Classes, **privacy: object) -> NoisedMetrics:
    spec = make_spec(privacy=NOISED | {"unit": unit} | privacy)
    return NoisedMetrics(task(spec), nn.Linear(1, 1), found, ALONE)


def measured(what: NoisedMetrics) -> MetricSums:
    sums = what.measure(lambda share: None)
    assert sums is not None
    return sums


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "noised", lambda sums, deviation, divisor: sums / divisor)


def caught(what: NoisedMetrics) -> np.ndarray:
    """The vector as it is released."""
    with pytest.MonkeyPatch.context() as patch:
        vectors: list[np.ndarray] = []
        patch.setattr(metrics, "as_sums", lambda vector, *_: vectors.append(vector))
        what.measure(lambda share: None)
    return vectors[0]


ANY = st.floats(allow_nan=True, allow_infinity=True, width=32)


def assert_bounded(outputs: Tensor, targets: Tensor, clip: float) -> None:
    one = data(outputs, targets, torch.zeros(len(outputs), dtype=torch.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "noised", lambda sums, deviation, divisor: sums / divisor)
        found = caught(make(one, "patient", metrics_loss_clip=clip))
    assert np.linalg.norm(found) <= 1 + 1e-12


@st.composite
def units(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """All that a patient may have: outputs, targets, and the clip."""
    num_classes, num = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    rows = st.lists(ANY, min_size=num_classes, max_size=num_classes)
    outputs = torch.tensor(draw(st.lists(rows, min_size=num, max_size=num)))
    targets = torch.tensor(draw(st.lists(st.integers(0, num_classes - 1), min_size=num, max_size=num)))
    return outputs, targets, draw(st.sampled_from([0.1, 3.0, 50.0]))


@settings(max_examples=25)
@given(units())
def test_each_units_contribution_is_bounded(unit: tuple[Tensor, Tensor, float]) -> None:
    assert_bounded(*unit)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("unit", ["record", "patient"])
def test_what_is_released_is_the_sum_of_what_single_units_add(unit: str) -> None:
    """So nobody's part depends on who else is there; `record`: also across batches."""
    outputs, targets = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    groups = PATIENTS if unit == "patient" else torch.arange(8)
    alone = [
        caught(make(data(outputs[groups == u], targets[groups == u], PATIENTS[groups == u]), unit))
        for u in groups.unique()
    ]
    together = caught(make(data(outputs, targets, PATIENTS), unit))
    np.testing.assert_allclose(together, sum(alone), atol=1e-12)
    assert max(map(np.linalg.norm, alone)) <= 1 + 1e-9


def noise_of(what: NoisedMetrics) -> np.ndarray:
    """In units of what it should be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "noised", lambda sums, deviation, divisor: sums / divisor)
        true = caught(what)
    return (caught(what) - true) / NOISE


def test_the_noise_is_normal_with_the_claimed_deviation() -> None:
    found = noise_of(make(data(torch.randn(4, 100))))
    assert len(found) == 100**2 + 1
    assert stats.kstest(found, "norm").pvalue > 1e-5


def test_it_is_fresh_each_time() -> None:
    what = make(data(torch.randn(4, 100)))
    assert abs(np.corrcoef(noise_of(what), noise_of(what))[0, 1]) < 0.06


@pytest.mark.usefixtures("exact")
def test_a_large_loss_counts_as_the_clip_and_leaves_the_answers_alone() -> None:
    outputs = torch.tensor([[1e9, 0.0, 0.0], [0.05, 0.0, 1.0], [float("nan"), 0.0, 0.0], [-1e9, 0.0, 1.0]])
    sums = measured(make(data(outputs[:2], torch.tensor([0, 1]))))
    assert sums.counts == {"examples": [2], "confusion": [1, 0, 0, 0, 0, 1, 0, 0, 0]}
    assert sums.totals == {"loss": pytest.approx(CLIP + 0.5)}
    assert measured(make(data(outputs[1:], torch.tensor([1, 1, 1])))).totals["loss"] == pytest.approx(0.5 + CLIP - CLIP)


@pytest.mark.usefixtures("exact")
def test_a_patient_counts_once_however_many_records_they_have() -> None:
    """Patient 0 is right once in three, patient 1 once in one."""
    outputs = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.0, 0.1], [0.0, 0.1]])
    what = make(data(outputs, torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 0, 0])), "patient")
    sums = measured(what)
    assert (sums.num_examples, sums.counts["confusion"]) == (2, [1, 1, 0, 0])
    assert sums.totals["loss"] == pytest.approx(1.0 + 1 / 3)


def test_the_figures_have_no_bias() -> None:
    """Of six records, with noise that makes most cells negative in one release or another."""
    nothing = released_part(MetricSums.of_classes(np.zeros((0, 3)), np.zeros(0, dtype=np.int64), np.zeros(0)))
    true = np.array([2.0, 0, 0, 1, 1, 0, 0, 1, 1, 2.0 / CLIP]) / math.sqrt(2)
    random = np.random.default_rng(1)
    found = [as_sums(true + random.normal(0, NOISE, 10), 6, CLIP, nothing) for _ in range(4000)]
    cells = np.array([one.counts["confusion"] for one in found], dtype=np.float64)
    assert (cells.sum(axis=1) == 6).all()
    assert (cells.min(axis=1) < 0).mean() > 0.9
    error = math.sqrt(2) * NOISE / math.sqrt(4000)
    np.testing.assert_allclose(cells.mean(axis=0), [2, 0, 0, 1, 1, 0, 0, 1, 1], atol=5 * error)
    assert np.mean([one.totals["loss"] for one in found]) == pytest.approx(2.0, abs=5 * CLIP * error)
    assert all(0 <= summarise(one)["accuracy"] <= 1 for one in found)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.integers(0, 1000))
def test_whole_numbers_add_up_and_stay_near(cells: list[float], total: int) -> None:
    given_cells = np.array(cells)
    found = np.array(whole(given_cells, total))
    assert found.sum() == total
    moved = given_cells + (total - given_cells.sum()) / len(cells)
    assert np.abs(found - moved).max() < 1 + 1e-6


@pytest.mark.usefixtures("exact")
def test_other_sums_of_a_task_do_not_leave() -> None:
    class Values(Classes):
        def sums(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> MetricSums:
            column = outputs[:, 0].numpy()
            return MetricSums.of_values(column, targets.numpy(), losses.numpy())

    sums = measured(make(data(torch.full((4, 2), 0.2)), task=Values))
    assert (sums.counts, sums.totals) == ({"examples": [4]}, {"loss": pytest.approx(8.0)})
    binary = measured(make(data(torch.full((4, 2), 0.2))))
    assert set(binary.counts) == {"examples", "confusion"}


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_nobody_to_test_on(unit: str) -> None:
    some, nobody = data(torch.zeros(3, 2)).train, torch.zeros(0, dtype=torch.int64)
    found = Datasets(some, TensorExamples(torch.zeros(0, 2), nobody, patients=nobody))
    assert make(found, unit).measure(lambda share: None) is None


def test_test_records_that_do_not_say_whose_they_are() -> None:
    with pytest.raises(Refused, match="no patient key"):
        make(data(torch.zeros(3, 2)), "patient")


# -- variants that are broken on purpose; that of the noise of each rank is in `test_ranks` --------------------------


def halved(sums: Tensor, deviation: float, divisor: float) -> Tensor:
    return _noised(sums, deviation / 2, divisor)


_noised = metrics.noised


def a_large_loss() -> None:
    assert_bounded(torch.tensor([[1e3, 0.0]]), torch.tensor([0]), CLIP)


def no_bias() -> None:
    test_the_figures_have_no_bias()


def of_clipped_cells(cells: np.ndarray, total: int | None) -> list[int]:
    return _whole(np.maximum(cells, 0.0), total)


_whole = metrics.whole


@pytest.fixture
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, *request.param)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (("noised", halved), test_the_noise_is_normal_with_the_claimed_deviation),
        (("cut_off", lambda losses, clip: losses), a_large_loss),
        (("whole", of_clipped_cells), no_bias),
    ],
    ids=["noise halved", "unclipped loss", "cells cut off at zero"],
    indirect=["broken"],
)
@pytest.mark.usefixtures("broken")
def test_is_noticed(test: Callable[[], Any]) -> None:
    with pytest.raises(AssertionError):
        test()
