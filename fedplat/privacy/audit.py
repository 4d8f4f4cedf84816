"""What an attack shows: lower bounds of epsilon from canaries, where the accountant gives upper ones.

Each canary was in the data or not, by a fair coin; its score says how much the releases look as if it was in. One run
with many canaries is enough (Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedplat.privacy.accountant import Vector
from fedplat.privacy.attacks import gaussian_deltas
from fedplat.privacy.events import SampledGaussian

_HALVINGS = 7
_LARGEST_EPSILON = 100.0
_LARGEST_MU = 40.0
_LARGEST_FACTOR = 1000.0
_PRECISION = 1e-6
_POWER = 0.9


@dataclass(frozen=True, slots=True)
class Canaries:
    """What came out of an attack: `scores` (canaries,), and which were in the data, `included` (canaries,)."""

    scores: Vector
    included: npt.NDArray[np.bool_]


def one_run_epsilon(canaries: Canaries, *, delta: float, confidence: float) -> float:
    """A lower bound of epsilon at `delta`, wrong with probability 1 - `confidence` at most, whatever the mechanism.

    The best of seven numbers of guesses (all canaries, half of them ... those with the most telling scores), each of
    which gets a seventh of the error.
    """
    error = (1 - confidence) / _HALVINGS
    num = len(canaries.scores)
    guessed = [num >> halving for halving in range(_HALVINGS) if num >> halving]
    return max((_bound(num, r, _num_right(canaries, r), delta, error) for r in guessed), default=0.0)


def one_run_p_value(num_canaries: int, num_guesses: int, num_right: int, *, epsilon: float, delta: float) -> float:
    """Upper bound of the probability that of so many guesses so many are right, if (epsilon, delta) holds.

    Steinke et al. 2023, theorem 5.2: delta can give away i canaries at once, but only with probability 2 m delta / i.
    """
    from scipy.stats import binom

    rate = 1 / (1 + math.exp(-epsilon))
    fewer = np.arange(1, num_right + 1)
    just_missed = np.cumsum(binom.pmf(num_right - fewer, num_guesses, rate))
    given_away = float(np.max(just_missed / fewer, initial=0.0))
    return min(1.0, float(binom.sf(num_right - 1, num_guesses, rate)) + 2 * num_canaries * delta * given_away)


def separation(canaries: Canaries, *, confidence: float) -> float:
    """Lower bound of how far the mean scores of included and excluded canaries are apart, in standard deviations of
    the excluded; 40 at most.

    For scores of many canaries (Glass 1976; its variance as in Hedges, Olkin 1985, section 5, for unequal variances).
    """
    found, others = canaries.scores[canaries.included], canaries.scores[~canaries.included]
    if min(len(found), len(others)) < 2:
        return 0.0
    shift, deviation = float(found.mean() - others.mean()), float(others.std(ddof=1))
    if shift <= 0:
        return 0.0
    if shift >= 2 * _LARGEST_MU * deviation:  # hardly any noise, or none
        return _LARGEST_MU
    spread = float(found.std(ddof=1)) / deviation
    error = _standard_error(shift / deviation, spread, len(found), len(others))
    return min(_LARGEST_MU, max(0.0, shift / deviation - _quantile(confidence) * error))


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """Epsilon at `delta` of Gaussian noise under which two neighbours are `mu` standard deviations apart.

    Dong, Roth, Su 2022, corollary 2.13, solved for epsilon.
    """
    if mu <= 0 or _delta(0.0, mu) <= delta:
        return 0.0
    return _root(lambda epsilon: delta - _delta(epsilon, mu), 0.0, mu**2 / 2 + mu * _quantile(1 - delta))


def noticed_noise_factor(
    claim: SampledGaussian, claimed_epsilon: float, *, delta: float, confidence: float, num_canaries: int
) -> float | None:
    """How many times too small noise has to be for nine audits in ten to notice it by the separation of summed scores;
    None if they would not."""
    rate, noise = claim.sampling_rate, claim.noise_multiplier
    honest = rate * math.sqrt(claim.num_steps) / noise
    allowed = _mu(claimed_epsilon, delta)
    quantiles = _quantile(confidence) + _quantile(_POWER)

    def excess(factor: float) -> float:
        spread = math.sqrt(1 + rate * (1 - rate) * (factor / noise) ** 2)
        error = _standard_error(factor * honest, spread, num_canaries // 2, num_canaries // 2)
        return factor * honest - quantiles * error - allowed

    return _root(excess, 1.0, _LARGEST_FACTOR) if excess(1.0) < 0 < excess(_LARGEST_FACTOR) else None


def _num_right(canaries: Canaries, num_guesses: int) -> int:
    """Those with the highest scores are guessed to be in, as many with the lowest to be out."""
    order = np.argsort(canaries.scores, kind="stable")
    num_in = num_guesses // 2
    guessed_in, guessed_out = order[len(order) - num_in :], order[: num_guesses - num_in]
    return int(canaries.included[guessed_in].sum() + (~canaries.included[guessed_out]).sum())


def _bound(num_canaries: int, num_guesses: int, num_right: int, delta: float, error: float) -> float:
    """The largest epsilon at which so many right guesses are less probable than `error`; 100 at most."""

    def excess(epsilon: float) -> float:
        return one_run_p_value(num_canaries, num_guesses, num_right, epsilon=epsilon, delta=delta) - error

    if excess(0.0) > 0:
        return 0.0
    return _LARGEST_EPSILON if excess(_LARGEST_EPSILON) < 0 else _root(excess, 0.0, _LARGEST_EPSILON)


def _standard_error(distance: float, spread: float, num_included: int, num_excluded: int) -> float:
    return math.sqrt(spread**2 / num_included + 1 / num_excluded + distance**2 / (2 * (num_excluded - 1)))


def _mu(epsilon: float, delta: float) -> float:
    """The mu of Gaussian noise that has this epsilon at `delta`."""
    high = 1.0
    while _delta(epsilon, high) < delta:
        high *= 2
    return _root(lambda mu: _delta(epsilon, mu) - delta, _PRECISION, high)


def _delta(epsilon: float, mu: float) -> float:
    return float(gaussian_deltas(np.array([epsilon]), mu)[0])


def _quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(function, low, high, xtol=_PRECISION))
