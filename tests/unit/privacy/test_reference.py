"""Our figures against independent calculations: never below the truth, and not far above it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedplat.privacy import SampledGaussian, accountant, advantage, delta, epsilon, gdp_mu, largest_tpr
from tests.unit.privacy.reference import (
    OwnPld,
    event,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_tpr,
    one_step_delta,
)

# Without sampling: mu^2 adds up over steps and noise levels.
UNSAMPLED = [
    [event(1.0, 2.0, 4)],
    [event(1.0, 30.0, 400)],
    [event(1.0, 1.0, 1), event(1.0, 2.0, 4), event(1.0, 10.0, 100)],
]


def mu_of(events: list[SampledGaussian]) -> float:
    return math.sqrt(sum(each.num_steps / each.noise_multiplier**2 for each in events))


@pytest.mark.parametrize("events", UNSAMPLED)
@pytest.mark.parametrize("at", [1e-3, 1e-5, 1e-9])
def test_epsilon_without_sampling(events: list[SampledGaussian], at: float) -> None:
    truth = gaussian_epsilon(mu_of(events), at)
    assert truth <= epsilon(events, delta=at) <= truth + 1e-3


@pytest.mark.parametrize("events", UNSAMPLED)
def test_attacks_without_sampling(events: list[SampledGaussian]) -> None:
    mu = mu_of(events)
    assert gaussian_delta(mu, 1e-300) <= advantage(events) <= gaussian_delta(mu, 1e-300) + 1e-5
    assert mu <= gdp_mu(events) <= mu + 1e-3
    for fpr in (0.001, 0.01, 0.5):
        assert gaussian_tpr(mu, fpr) <= largest_tpr(events, fpr=fpr) <= gaussian_tpr(mu, fpr) + 1e-4


@pytest.mark.parametrize(("sampling_rate", "noise"), [(0.01, 1.0), (0.05, 2.0), (0.25, 0.8), (0.5, 5.0)])
def test_one_step_by_integration(sampling_rate: float, noise: float) -> None:
    for at in (0.0, 0.2):
        truth = one_step_delta(sampling_rate, noise, at)
        found = delta([event(sampling_rate, noise, 1)], epsilon=at)
        assert truth - 1e-8 <= found <= truth + 1e-7


@pytest.mark.parametrize(
    "events",
    [
        [event(0.05, 2.0, 1500)],
        [event(0.02, 1.1, 500), event(0.05, 3.0, 200), event(1.0, 50.0, 10)],
    ],
    ids=["one run", "heterogeneous"],
)
def test_many_steps_by_a_pld_of_our_own(events: list[SampledGaussian]) -> None:
    own = OwnPld(events)
    assert epsilon(events, delta=1e-5) == pytest.approx(own.epsilon(1e-5), abs=1e-3)
    assert advantage(events) == pytest.approx(own.delta(0.0), abs=1e-4)


@pytest.mark.parametrize(("noise", "num_steps"), [(10.0, 100), (100.0, 10_000), (300.0, 100_000)])
def test_the_rounding_error_covers_that_of_the_transforms(noise: float, num_steps: int) -> None:
    """At ten thousand steps the library's delta alone is 2e-13 below the closed form."""
    composed = accountant._one_step(1.0, noise, 1, 1e-4).self_compose(num_steps)
    mu, error = math.sqrt(num_steps) / noise, accountant._rounding_error((event(1.0, noise, num_steps),))
    epsilons = np.arange(0.5, 9.0, 0.25)
    found = composed.get_delta_for_epsilon(epsilons) + error
    assert all(found >= [gaussian_delta(mu, at) for at in epsilons])


def test_rounds_compose_as_one_run() -> None:
    assert epsilon([event(0.01, 1.0, 100)] * 10, delta=1e-5) == epsilon([event(0.01, 1.0, 1000)], delta=1e-5)


def test_two_runs_compose_jointly() -> None:
    """Between the worse of both and the sum of both, and independent of their order."""
    first, second = event(0.01, 1.0, 1000), event(0.05, 2.0, 1500)
    joint = epsilon([first, second], delta=1e-5)
    assert joint == epsilon([second, first], delta=1e-5)
    assert joint == pytest.approx(OwnPld([first, second]).epsilon(1e-5), abs=1e-3)
    alone = [epsilon([each], delta=1e-5) for each in (first, second)]
    assert max(alone) < joint < 0.85 * sum(alone)


def test_delta_and_epsilon_are_inverse() -> None:
    events = [event(0.02, 1.2, 300)]
    assert delta(events, epsilon=epsilon(events, delta=1e-5)) == pytest.approx(1e-5, rel=1e-4)


def test_nothing_released_costs_nothing() -> None:
    for events in ([], [event(0.5, 1.0, 0)]):
        assert epsilon(events, delta=1e-5) == delta(events, epsilon=0.0) == advantage(events) == gdp_mu(events) == 0.0
        assert largest_tpr(events, fpr=0.01) == 0.01


def test_hardly_any_noise_protects_nobody() -> None:
    events = [event(1.0, 0.001, 10)]
    assert epsilon(events, delta=1e-5) == gdp_mu(events) == math.inf
    assert advantage(events) == largest_tpr(events, fpr=0.01) == delta(events, epsilon=10.0) == 1.0


def test_little_noise_needs_little_memory() -> None:
    """A loss in the tens of thousands on the usual grid would take gigabytes."""
    assert 40_000 < epsilon([event(0.5, 0.01, 10)], delta=1e-5) < 60_000
