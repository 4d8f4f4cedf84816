"""What must hold of every plan."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedplat.privacy import PrivacyError, SampledGaussian, advantage, calibrate, epsilon, largest_tpr
from tests.unit.privacy.reference import event

pytestmark = pytest.mark.usefixtures("coarse")

# Figures are rounded up, and pessimistic by what the grid of losses leaves open.
SLACK = 1e-4

rates = st.floats(0.005, 0.2)
noises = st.floats(1.0, 5.0)
steps = st.integers(1, 300)
factors = st.floats(1.05, 2.0)
events = st.builds(event, rates, noises, steps)


@given(events, factors)
@settings(max_examples=12)
def test_more_steps_cost_more(one: SampledGaussian, factor: float) -> None:
    more = event(one.sampling_rate, one.noise_multiplier, int(one.num_steps * factor) + 1)
    assert epsilon([one], delta=1e-5) <= epsilon([more], delta=1e-5) + SLACK


@given(events, factors)
@settings(max_examples=12)
def test_more_sampling_costs_more(one: SampledGaussian, factor: float) -> None:
    more = event(min(1.0, one.sampling_rate * factor), one.noise_multiplier, one.num_steps)
    assert epsilon([one], delta=1e-5) <= epsilon([more], delta=1e-5) + SLACK


@given(events, factors)
@settings(max_examples=12)
def test_less_noise_costs_more(one: SampledGaussian, factor: float) -> None:
    less = event(one.sampling_rate, one.noise_multiplier / factor, one.num_steps)
    assert epsilon([one], delta=1e-5) <= epsilon([less], delta=1e-5) + SLACK


@given(events, events)
@settings(max_examples=6)
def test_more_runs_cost_more_and_less_than_their_sum(one: SampledGaussian, other: SampledGaussian) -> None:
    alone = [epsilon([each], delta=1e-5) for each in (one, other)]
    # Sequential composition adds the deltas, too.
    half = [epsilon([each], delta=0.5e-5) for each in (one, other)]
    assert max(alone) - SLACK <= epsilon([one, other], delta=1e-5) <= sum(half) + SLACK


@given(events, st.floats(0.001, 0.999))
@settings(max_examples=6)
def test_no_attack_beats_the_advantage(one: SampledGaussian, fpr: float) -> None:
    assert fpr <= largest_tpr([one], fpr=fpr) <= fpr + advantage([one]) + SLACK


@given(rates, noises, steps)
@settings(max_examples=4)
def test_calibration_is_the_inverse_of_epsilon(sampling_rate: float, noise: float, num_steps: int) -> None:
    target = epsilon([event(sampling_rate, noise, num_steps)], delta=1e-5)
    assume(0.01 < target < 100)
    found = calibrate(target_epsilon=target, delta=1e-5, sampling_rate=sampling_rate, num_steps=num_steps)
    assert found == pytest.approx(noise, abs=5e-4)
    assert epsilon([event(sampling_rate, found, num_steps)], delta=1e-5) <= target


def test_the_least_noise_that_keeps_the_target() -> None:
    found = calibrate(target_epsilon=3.0, delta=1e-5, sampling_rate=0.02, num_steps=1000)
    assert round(found, 4) == found
    assert epsilon([event(0.02, found, 1000)], delta=1e-5) <= 3.0
    assert epsilon([event(0.02, found - 2e-4, 1000)], delta=1e-5) > 3.0


def test_calibration_leaves_room_for_what_else_is_charged() -> None:
    spent = [event(0.01, 1.0, 500), event(1.0, 30.0, 10)]
    alone = calibrate(target_epsilon=3.0, delta=1e-5, sampling_rate=0.02, num_steps=1000)
    beside = calibrate(target_epsilon=3.0, delta=1e-5, sampling_rate=0.02, num_steps=1000, besides=spent)
    assert beside > alone
    assert 2.99 < epsilon([*spent, event(0.02, beside, 1000)], delta=1e-5) <= 3.0


def test_a_spent_budget_has_no_noise_left() -> None:
    with pytest.raises(PrivacyError, match="no noise keeps epsilon within 1 at delta 1e-05") as error:
        calibrate(target_epsilon=1.0, delta=1e-5, sampling_rate=0.02, num_steps=100, besides=[event(0.01, 1.0, 1000)])
    assert "1.82" in error.value.hint


def test_noise_has_a_floor() -> None:
    """Sampled more rarely than delta, no noise at all would do."""
    assert calibrate(target_epsilon=1.0, delta=1e-3, sampling_rate=1e-6, num_steps=10) == 0.1
