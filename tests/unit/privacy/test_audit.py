"""Lower bounds of epsilon: against known answers, and against simulated mechanisms whose epsilon is known."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from fedplat.privacy import SampledGaussian, epsilon
from fedplat.privacy.audit import (
    Canaries,
    gaussian_epsilon,
    noticed_noise_factor,
    one_run_epsilon,
    one_run_p_value,
    separation,
)

pytestmark = pytest.mark.usefixtures("coarse")
NUM = 1000
EACH = 0.975


def canaries(rng: np.random.Generator, mu: float) -> Canaries:
    """Gaussian noise; the included are `mu` standard deviations off."""
    included = rng.random(NUM) < 0.5
    return Canaries(rng.normal(size=NUM) + mu * included, included)


def sampled(rng: np.random.Generator, claim: SampledGaussian, factor: float = 1.0) -> Canaries:
    """Scores of a run whose noise is `factor` times too small."""
    included = rng.random(NUM) < 0.5
    drawn = rng.binomial(claim.num_steps, claim.sampling_rate, NUM) * included
    return Canaries(drawn + rng.normal(size=NUM) * claim.noise_multiplier / factor * claim.num_steps**0.5, included)


@cache
def plan(rate: float, noise: float, steps: int) -> tuple[SampledGaussian, float]:
    claim = SampledGaussian(sampling_rate=rate, noise_multiplier=noise, num_steps=steps)
    return claim, epsilon([claim], delta=1e-5)


def test_without_delta_it_is_the_tail_of_randomised_response() -> None:
    assert one_run_p_value(100, 20, 20, epsilon=0.0, delta=0.0) == pytest.approx(2.0**-20)
    assert one_run_p_value(100, 3, 2, epsilon=math.log(3), delta=0.0) == pytest.approx(54 / 64)
    assert one_run_p_value(100, 10, 0, epsilon=1.0, delta=1e-5) == 1


def test_a_perfect_attack_is_known_in_closed_form() -> None:
    """All right, so (e^eps / (1 + e^eps))^m = error / 7."""
    included = np.arange(NUM) % 2 == 0
    rate = (0.025 / 7) ** (1 / NUM)
    found = one_run_epsilon(Canaries(included * 1.0, included), delta=0.0, confidence=EACH)
    assert found == pytest.approx(math.log(rate / (1 - rate)), rel=1e-4)
    assert one_run_epsilon(Canaries(included * -1.0, included), delta=0.0, confidence=EACH) == 0


@pytest.mark.parametrize("delta", [1e-4, 1e-2])
def test_the_p_value_covers_mechanisms_that_use_their_delta(delta: float) -> None:
    """Both are (1, delta)-DP: all bits at once with probability delta, or each bit by itself. Exact probabilities."""
    num, rate = 50, 1 / (1 + math.exp(-1))
    for right in range(num + 1):
        found = one_run_p_value(num, num, right, epsilon=1.0, delta=delta)
        at_once = delta + (1 - delta) * binom.sf(right - 1, num, rate)
        one_by_one = binom.sf(right - 1, num, delta + (1 - delta) * rate)
        assert found >= max(at_once, one_by_one) - 1e-12


def test_of_honest_noise_no_more_are_found_guilty_than_was_said() -> None:
    """Without sampling the Gaussian fit is exact, so its share of false alarms is 2.5 %, and not much less."""
    rng = np.random.default_rng(1)
    bounds = np.array([separation(canaries(rng, 1.0), confidence=EACH) for _ in range(2000)])
    assert 0.015 < np.mean(bounds > 1.0) < 0.036
    assert np.median(bounds) > 0.8
    truth = gaussian_epsilon(1.0, delta=1e-5)
    one_run = [one_run_epsilon(canaries(rng, 1.0), delta=1e-5, confidence=EACH) for _ in range(40)]
    assert max(one_run) < truth
    assert np.median(one_run) > 1


def test_sampled_noise_is_not_found_guilty_and_halved_noise_is() -> None:
    rng = np.random.default_rng(2)
    claim, claimed = plan(0.1, 1.5, 200)

    def share(factor: float) -> float:
        found = [separation(sampled(rng, claim, factor), confidence=EACH) for _ in range(300)]
        return float(np.mean([gaussian_epsilon(mu, delta=1e-5) > claimed for mu in found]))

    assert share(1) <= 0.025
    assert share(2) >= 0.99


def test_what_it_says_it_would_notice_it_notices_nine_times_in_ten() -> None:
    rng = np.random.default_rng(3)
    claim, claimed = plan(0.1, 1.5, 200)
    factor = noticed_noise_factor(claim, claimed, delta=1e-5, confidence=EACH, num_canaries=NUM)
    assert factor is not None
    found = [separation(sampled(rng, claim, factor), confidence=EACH) for _ in range(600)]
    assert 0.85 < np.mean([gaussian_epsilon(mu, delta=1e-5) > claimed for mu in found]) < 0.95


def test_the_fit_is_the_accountants_gaussian() -> None:
    for mu in (0.1, 3.0):
        event = SampledGaussian(sampling_rate=1.0, noise_multiplier=1 / mu, num_steps=1)
        assert gaussian_epsilon(mu, delta=1e-5) == pytest.approx(epsilon([event], delta=1e-5), abs=2e-3)
    assert gaussian_epsilon(0.0, delta=1e-5) == gaussian_epsilon(1e-6, delta=1e-5) == 0


def test_extremes_have_figures() -> None:
    included = np.arange(NUM) % 2 == 0
    assert separation(Canaries(included * 3.0, included), confidence=EACH) == 40
    assert separation(Canaries(included * 0.0, included), confidence=EACH) == 0
    assert separation(Canaries(included * 3.0, included & False), confidence=EACH) == 0
    assert one_run_epsilon(Canaries(included * 3.0, included), delta=0.5, confidence=EACH) == 0


@pytest.mark.slow
def test_an_honest_mean_never_promises_more_than_the_accountant() -> None:
    """The fit takes summed scores of sampled noise for Gaussian: the epsilon of their true distance must be covered."""
    for rate in (0.001, 0.01, 0.1, 0.5, 0.9, 1.0):
        for steps in (1, 10, 100, 1000):
            for noise in (0.4, 0.7, 1.0, 2.0, 5.0, 20.0):
                claim = SampledGaussian(sampling_rate=rate, noise_multiplier=noise, num_steps=steps)
                for delta in (1e-3, 1e-5):
                    found = gaussian_epsilon(rate * math.sqrt(steps) / noise, delta=delta)
                    assert found <= epsilon([claim], delta=delta) + 1e-3
