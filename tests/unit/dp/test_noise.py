"""The noise: normal with the claimed deviation, from the system's randomness, and leaving no trace of low bits."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch
from scipy import stats

from fedplat_silo.trainer.dp import noise
from fedplat_silo.trainer.dp.noise import box_muller, noised

LEVEL = 1e-5


@pytest.mark.parametrize("size", [1, 2, 99_999, 200_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_normal_with_the_claimed_deviation(size: int, dtype: torch.dtype) -> None:
    found = noised(torch.zeros(size, dtype=dtype), 3.0, 4.0)
    assert (found.dtype, found.shape) == (dtype, (size,))
    assert stats.kstest(found.numpy() / 0.75, "norm").pvalue > LEVEL


def test_a_deviation_that_is_one_percent_off_is_noticed() -> None:
    found = noised(torch.zeros(4_000_000), 1.01, 1.0).numpy()
    assert stats.kstest(found, "norm").pvalue < LEVEL


def test_it_is_added_to_the_sum_before_the_division() -> None:
    sums = torch.linspace(-1e6, 1e6, 100_001, dtype=torch.float64)
    assert stats.kstest((2 * noised(sums, 1.0, 2.0) - sums).numpy(), "norm").pvalue > LEVEL


def test_values_are_independent() -> None:
    found = noised(torch.zeros(1_000_000), 1.0, 1.0).numpy()
    for lag in (1, noise._BLOCK // 2, noise._BLOCK):
        for a, b in ((found[:-lag], found[lag:]), (found[:-lag] ** 2, found[lag:] ** 2)):
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 1e3


def test_it_is_fresh_each_time_whatever_seeds_are_set() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)
        found.append(noised(torch.zeros(100), 1.0, 1.0))
    assert not torch.equal(*found)


def test_what_comes_out_lies_on_a_grid_that_only_the_deviation_decides() -> None:
    grid = 2.0**-20
    for sums in (torch.zeros(50_000), torch.rand(50_000) * 1e-7, torch.rand(50_000) * 5):
        steps = noised(sums, 1.5, 1.0).double() / grid
        assert torch.equal(steps, steps.round())


def test_the_tails_go_far_and_stay_finite() -> None:
    words = np.array([0, 1, -1, 2**63 - 1, -(2**63), 2**62, 0, 2**61, 2**62, -(2**62), 2**63 - 1, -(2**63)])
    found = box_muller(words, 1.0)
    assert np.isfinite(found).all()
    assert found.max() < 9.5
    assert np.hypot(*found.reshape(2, -1))[0] == pytest.approx((2 * 64 * np.log(2)) ** 0.5)


@pytest.mark.parametrize("processor", ["AVX512", "AVX2"])
def test_it_equals_box_and_mullers_formula(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    assert_box_muller()


def assert_box_muller() -> None:
    words = np.frombuffer(secrets.token_bytes(8 * 2000), dtype=np.int64)
    radius, angle = words[:1000].astype(np.longdouble), words[1000:].astype(np.longdouble)
    r = np.sqrt(-2 * np.log((np.abs(radius) + 0.5) / 2**63))
    theta = angle * np.pi / 2**63
    expected = np.concatenate([r * np.cos(theta), r * np.sin(theta)]).astype(np.float64)
    np.testing.assert_allclose(box_muller(words, 1.0), expected, rtol=1e-9, atol=1e-12)


def test_the_generator_of_a_device_is_seeded_from_the_system() -> None:
    torch.manual_seed(1)
    first, second = (noise._normals_on(torch.device("cpu"), 100_000) for _ in range(2))
    assert not torch.equal(first, second)
    assert first.dtype == torch.float64
    assert stats.kstest(first.numpy(), "norm").pvalue > LEVEL
