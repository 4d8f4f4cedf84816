"""Poisson samples: who is in a step is a coin for each unit, secret, and the same at every rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fedplat.spec.privacy import PrivacyUnit
from fedplat_silo.data.examples import TensorExamples
from fedplat_silo.trainer.dp.sampler import PoissonSampler, shared_key
from fedplat_silo.trainer.dp.units import Units
from tests.unit.dp.world import ALONE, make_examples

KEY = bytes(range(32))


def assert_binomial(sizes: list[int], num_units: int, rate: float) -> None:
    """Fisher's dispersion beside the mean: a fixed size, or one coin for all, has another spread."""
    n, mean, variance = len(sizes), num_units * rate, num_units * rate * (1 - rate)
    assert abs(np.mean(sizes) - mean) < 4 * (variance / n) ** 0.5
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], n - 1) / (n - 1)
    assert low < np.var(sizes, ddof=1) / variance < high


def test_sizes_are_binomial() -> None:
    sampler = PoissonSampler(KEY, 400, 0.03)
    sizes = [len(sampler.draw(step)) for step in range(2000)]
    assert_binomial(sizes, 400, 0.03)
    counts = np.bincount(sizes, minlength=30)
    expected = 2000 * stats.binom.pmf(np.arange(len(counts)), 400, 0.03)
    some = expected > 5
    found = np.append(counts[some], counts[~some].sum())
    assert stats.chisquare(found, np.append(expected[some], 2000 - expected[some].sum())).pvalue > 1e-4


@pytest.mark.parametrize("sizes", [[12] * 2000, [0, 24] * 1000])
def test_sizes_that_are_not_binomial_are_noticed(sizes: list[int]) -> None:
    with pytest.raises(AssertionError):
        assert_binomial(sizes, 400, 0.03)


def test_units_and_steps_are_independent() -> None:
    sampler = PoissonSampler(KEY, 50, 0.3)
    masks = np.zeros((4000, 50))
    for step, mask in enumerate(masks):
        mask[sampler.draw(step)] = 1
    assert abs(masks.mean(0) - 0.3).max() < 5 * (0.21 / 4000) ** 0.5
    correlation = np.corrcoef(masks, rowvar=False) - np.eye(50)
    assert abs(correlation).max() < 5 / 4000**0.5
    assert abs(np.corrcoef(masks[:-1].ravel(), masks[1:].ravel())[0, 1]) < 5 / 200_000**0.5


def test_the_extremes() -> None:
    assert PoissonSampler(KEY, 7, 1.0).draw(0).tolist() == list(range(7))
    assert PoissonSampler(KEY, 7, 1e-30).draw(0).tolist() == []
    assert sum(len(PoissonSampler(KEY, 3, 0.01).draw(step)) == 0 for step in range(200)) > 150


def test_one_key_gives_one_sequence_and_every_key_another() -> None:
    first, again, other = (PoissonSampler(key, 200, 0.5) for key in (KEY, KEY, bytes(32)))
    assert first.draw(3).tolist() == again.draw(3).tolist() != other.draw(3).tolist()
    assert first.draw(3).tolist() != first.draw(4).tolist()


def test_keys_are_the_systems_and_not_the_runs() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = shared_key(ALONE)
    torch.manual_seed(1)
    np.random.seed(1)
    assert len(first) == 32
    assert shared_key(ALONE) != first


def test_records_come_in_batches_that_fit() -> None:
    units = Units(make_examples(), PrivacyUnit.RECORD)
    batches = list(units.batches(np.arange(3, 20), 5))
    assert [b.num_units for b in batches] == [5, 5, 5, 2]
    assert torch.cat([b.rows for b in batches]).tolist() == list(range(3, 20))
    assert list(units.batches(np.arange(0), 5)) == []


def test_a_patients_rows_are_beside_each_other_and_weigh_what_one_patient_weighs() -> None:
    patients = torch.tensor([7, 3, 7, 9, 7, 3, 1])
    examples = TensorExamples(torch.arange(7.0)[:, None], torch.zeros(7), torch.arange(1.0, 8), patients)
    units = Units(examples, PrivacyUnit.PATIENT)
    assert len(units) == 4
    batches = list(units.batches(np.array([0, 1, 2, 3]), 4))
    assert [b.num_units for b in batches] == [2, 1, 1]  # patients 1 and 9, then 3, then 7 with its three records
    rows = [b.rows.tolist() for b in batches]
    assert rows == [[6, 3], [1, 5], [0, 2, 4]]
    assert batches[2].weights.tolist() == pytest.approx([1 / 3, 3 / 3, 5 / 3])
    [whole] = units.batches(np.array([1, 2]), 100)
    assert whole.rows.tolist() == [1, 5, 1, 0, 2, 4]
    assert whole.num_units == 2
    assert whole.is_real.tolist() == [True, True, False, True, True, True]
    assert whole.weights.tolist() == pytest.approx([1.0, 3.0, 0.0, 1 / 3, 1.0, 5 / 3])


def test_a_patient_that_does_not_fit_comes_alone() -> None:
    examples = TensorExamples(torch.zeros(9, 1), torch.zeros(9), None, torch.tensor([0] * 7 + [1, 2]))
    batches = list(Units(examples, PrivacyUnit.PATIENT).batches(np.arange(3), 2))
    assert [(b.num_units, len(b.rows)) for b in batches] == [(2, 2), (1, 7)]
