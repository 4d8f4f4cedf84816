"""Epsilon and delta of composed events, from their privacy loss distribution (PLD).

The distribution is discretised pessimistically (Doroshenko et al. 2022, "Connect the Dots") by dp-accounting, in both
directions of zero-out. What its Fourier transforms round off is not on the safe side there: it is added to delta here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache, reduce
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from fedplat.privacy.errors import PrivacyError
from fedplat.privacy.events import SampledGaussian, merged
from fedplat.privacy.rdp import rough_epsilon
from fedplat.privacy.values import checked_delta, is_count, is_number, round_up

_INTERVAL = 1e-4
_INTERVAL_OF_GROUPS = 1e-3
_MOST_RECORDS = 100
_MAX_POINTS = 1_000_000
_MAX_LOSS = 1_000_000.0
_TAIL = math.exp(-50)
# The error of a composed delta, from 100 to a million steps against the closed form of the unsampled Gaussian, was at
# most 5e-17 a step: a Fourier coefficient near 1 takes its relative error to the power num_steps along.
_ROUNDING_PER_STEP = 1e-16
_ROUNDING_PER_EVENT = 1e-13

Vector = npt.NDArray[np.float64]


class _Pld(Protocol):
    def get_epsilon_for_delta(self, delta: float) -> float: ...
    def get_delta_for_epsilon(self, epsilon: Vector) -> Vector: ...
    def compose(self, privacy_loss_distribution: Self) -> Self: ...
    def self_compose(self, num_times: int) -> Self: ...


def epsilon(events: Iterable[SampledGaussian], *, delta: float, records_per_patient: int = 1) -> float:
    """Epsilon of the composed events at `delta`: an upper bound, rounded up; infinite from a million on.

    With `records_per_patient` the events sample records, and the figure protects a patient with up to so many of them
    (Ganesh 2024, "Tight group-level DP guarantees for DP-SGD").
    """
    if not (is_count(records_per_patient) and 1 <= records_per_patient <= _MOST_RECORDS):
        raise PrivacyError(
            f"records_per_patient is {records_per_patient!r}",
            hint=f"a whole number from 1 to {_MOST_RECORDS}; where patients have more, sample patients, not records",
        )
    return _epsilon(merged(events), checked_delta(delta), records_per_patient)


def delta(events: Iterable[SampledGaussian], *, epsilon: float) -> float:
    """Delta of the composed events at `epsilon`: an upper bound."""
    if not (is_number(epsilon) and epsilon >= 0):
        raise PrivacyError(f"epsilon is {epsilon!r}", hint="a number, at least 0")
    return float(deltas(merged(events), np.array([epsilon], dtype=np.float64))[0])


def deltas(events: tuple[SampledGaussian, ...], epsilons: Vector) -> Vector:
    """Upper bounds of delta of merged events, at ascending epsilons."""
    if not events:
        return np.zeros_like(epsilons)
    return np.clip(_pld(events, 1).get_delta_for_epsilon(epsilons) + _rounding_error(events), 0.0, 1.0)


def smallest_delta(events: tuple[SampledGaussian, ...]) -> float:
    """The least delta that floating point leaves a figure for."""
    return 10 * _rounding_error(events)


def _rounding_error(events: tuple[SampledGaussian, ...]) -> float:
    return _ROUNDING_PER_EVENT * len(events) + _ROUNDING_PER_STEP * sum(event.num_steps for event in events)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[SampledGaussian, ...], delta: float, records: int) -> float:
    if not events:
        return 0.0
    least = smallest_delta(events)
    if delta < least:
        raise PrivacyError(
            f"delta = {delta:g} is too small to compute with", hint=f"for these events at least {least:.1e}"
        )
    return round_up(_pld(events, records).get_epsilon_for_delta(delta - _rounding_error(events)))


@lru_cache(maxsize=4)
def _pld(events: tuple[SampledGaussian, ...], records: int) -> _Pld:
    interval = _interval(events, records)
    if interval is None:
        return _no_privacy()
    return reduce(lambda left, right: left.compose(right), (_composed(e, records, interval) for e in events))


def _interval(events: tuple[SampledGaussian, ...], records: int) -> float | None:
    """The discretisation of the loss; wider where the loss is so large that memory would not hold it."""
    # The loss of k records is at most about k^2 times that of one: exactly so for the mean, less in the tails.
    largest_loss = rough_epsilon(events, delta=_TAIL) * records**2
    if not largest_loss <= _MAX_LOSS:
        return None
    fits = 10.0 ** math.ceil(math.log10(max(largest_loss, 1.0) / _MAX_POINTS))
    return max(fits, _INTERVAL if records == 1 else _INTERVAL_OF_GROUPS)


@lru_cache(maxsize=32)
def _composed(event: SampledGaussian, records: int, interval: float) -> _Pld:
    if event.sampling_rate == 1:
        return _one_step(1.0, event.noise_multiplier / math.sqrt(event.num_steps), records, interval)
    step = _one_step(event.sampling_rate, event.noise_multiplier, records, interval)
    return step.self_compose(event.num_steps)


@lru_cache(maxsize=8)
def _one_step(sampling_rate: float, noise_multiplier: float, records: int, interval: float) -> _Pld:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as library

    if records == 1 or sampling_rate == 1:
        one: _Pld = library.from_gaussian_mechanism(
            standard_deviation=noise_multiplier / records,
            sampling_prob=sampling_rate,
            value_discretization_interval=interval,
            neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
        )
        return one
    sampled = range(records + 1)
    group: _Pld = library.from_mixture_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sensitivities=[float(k) for k in sampled],
        sampling_probs=[
            math.comb(records, k) * sampling_rate**k * (1 - sampling_rate) ** (records - k) for k in sampled
        ],
        value_discretization_interval=interval,
    )
    return group


def _no_privacy() -> _Pld:
    from dp_accounting.pld import privacy_loss_distribution as library

    exposed: _Pld = library.PrivacyLossDistribution.create_from_rounded_probability({0: 0.0}, 1.0, _INTERVAL)
    return exposed
