"""What the figures mean: how well the best attack can tell whether a patient took part."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from fedplat.privacy.accountant import Vector, deltas, epsilon, smallest_delta
from fedplat.privacy.errors import PrivacyError
from fedplat.privacy.events import SampledGaussian, merged
from fedplat.privacy.values import is_number, round_up

_NEGLIGIBLE_DELTA = 1e-10
_EPSILON_STEP = 0.2
_FEWEST_STEPS, _MOST_STEPS = 16, 1000
_FINER = 10
_MU_PRECISION = 1e-7


def advantage(events: Iterable[SampledGaussian]) -> float:
    """Upper bound of membership advantage: true minus false positive rate of the best attack, delta at epsilon 0."""
    return round_up(float(_profile(merged(events))[1][0]))


def advantage_from_epsilon(epsilon: float, delta: float = 0.0) -> float:
    """The advantage that (epsilon, delta) alone would allow, without the whole distribution (Kairouz et al. 2015)."""
    return round_up(math.tanh(epsilon / 2) + 2 * delta * math.exp(-epsilon) / (1 + math.exp(-epsilon)))


def largest_tpr(events: Iterable[SampledGaussian], *, fpr: float) -> float:
    """Upper bound of the true positive rate of any attack at false positive rate `fpr`: the trade-off curve.

    Every epsilon bounds it from two sides (Dong, Roth, Su 2022, proposition 2.12); the least of these bounds.
    """
    if not (is_number(fpr) and 0 <= fpr <= 1):
        raise PrivacyError(f"fpr is {fpr!r}", hint="a rate between 0 and 1")
    epsilons, bounds = _profile(merged(events))
    with np.errstate(over="ignore"):
        above = bounds + np.exp(epsilons) * fpr
    below = 1 - np.exp(-epsilons) * (1 - bounds - fpr)
    return min(1.0, round_up(float(min(above.min(), below.min()))))


def gdp_mu(events: Iterable[SampledGaussian]) -> float:
    """The smallest mu whose Gaussian mechanism has no smaller delta than these events have; rounded up.

    Compared at epsilon 0, 0.2, 0.4 ... as long as delta is above 1e-10: deeper in the tail no mu is large enough for
    sampled noise (Dong, Roth, Su 2022, corollary 2.13; Gomez et al. 2025 on reporting mu).
    """
    composed = merged(events)
    if not composed:
        return 0.0
    if math.isinf(_end(composed)):
        return math.inf
    epsilons, bounds = (column[::_FINER] for column in _profile(composed))
    low, high = 0.0, 1.0
    while np.any(gaussian_deltas(epsilons, high) < bounds):
        low, high = high, 2 * high
    while high - low > _MU_PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if np.any(gaussian_deltas(epsilons, middle) < bounds) else (low, middle)
    return round_up(high)


@lru_cache(maxsize=16)
def _profile(events: tuple[SampledGaussian, ...]) -> tuple[Vector, Vector]:
    """Epsilons from 0, and the deltas there."""
    end = _end(events)
    if end == 0 or math.isinf(end):
        return np.zeros(1), deltas(events, np.zeros(1))
    step = max(min(_EPSILON_STEP, end / _FEWEST_STEPS), end / _MOST_STEPS)
    epsilons = np.arange(0.0, end, step / _FINER)
    return epsilons, deltas(events, epsilons)


def _end(events: tuple[SampledGaussian, ...]) -> float:
    """The epsilon beyond which delta is negligible, or drowns in rounding errors."""
    return epsilon(events, delta=max(_NEGLIGIBLE_DELTA, smallest_delta(events)))


def gaussian_deltas(epsilons: Vector, mu: float) -> Vector:
    """Delta of the mu-Gaussian mechanism (Balle, Wang 2018, theorem 8)."""
    from scipy.special import log_ndtr, ndtr

    lower = np.exp(epsilons + log_ndtr(-epsilons / mu - mu / 2))
    return np.asarray(ndtr(-epsilons / mu + mu / 2) - lower, dtype=np.float64)
