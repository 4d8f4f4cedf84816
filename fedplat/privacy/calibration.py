"""The noise that a planned run needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from fedplat.privacy.accountant import epsilon
from fedplat.privacy.errors import PrivacyError
from fedplat.privacy.events import SampledGaussian, merged
from fedplat.privacy.values import is_number, round_up

_DECIMALS = 4
_RESOLUTION = 1e-4
_LEAST_NOISE = 0.1
_MOST_NOISE = 2.0**20
_SMALLEST, _LARGEST = 1e-6, 1e6
_LARGEST_TARGET = 1000.0


def calibrate(
    *,
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    num_steps: int,
    besides: Iterable[SampledGaussian] = (),
) -> float:
    """The least noise multiplier, rounded up to four decimals, that keeps the whole run within `target_epsilon`.

    `besides` is what else the same patients are charged: the run's noised metrics, or all that they spent before.
    Never below 0.1, where the guarantee would rest on delta alone.
    """
    if not (is_number(target_epsilon) and 0 < target_epsilon <= _LARGEST_TARGET):
        raise PrivacyError(f"target_epsilon is {target_epsilon!r}", hint="above 0 and at most 1000")
    others = merged(besides)

    def excess(noise_multiplier: float) -> float:
        plan = SampledGaussian(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, num_steps=num_steps)
        reached = epsilon([*others, plan], delta=delta)
        # Logarithms, for epsilon is close to a power of the noise.
        return math.log(min(max(reached, _SMALLEST), _LARGEST) / target_epsilon)

    low, high = _bracket(excess)
    if math.isinf(high):
        raise PrivacyError(
            f"no noise keeps epsilon within {target_epsilon:g} at delta {delta:g}",
            hint=f"what is charged besides this run has epsilon {epsilon(others, delta=delta):.3f} already",
        )
    found = round_up(_root(excess, low, high), _DECIMALS)
    while excess(found) > 0:
        found = round_up(found + _RESOLUTION / 2, _DECIMALS)
    return found


def _bracket(excess: Callable[[float], float]) -> tuple[float, float]:
    """Noise multipliers with the root of `excess` between them; equal where the least noise is enough."""
    high = 1.0
    while excess(high) > 0:
        if high > _MOST_NOISE:
            return high, math.inf
        high *= 2
    while high > _LEAST_NOISE and excess(low := max(high / 2, _LEAST_NOISE)) <= 0:
        high = low
    return max(high / 2, _LEAST_NOISE), high


def _root(excess: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq

    return high if low == high else float(brentq(excess, low, high, xtol=_RESOLUTION / 4))
