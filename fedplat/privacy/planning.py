"""What a run is going to release at one silo, before it begins."""

from __future__ import annotations

from functools import lru_cache

from fedplat.privacy.calibration import calibrate
from fedplat.privacy.events import SampledGaussian
from fedplat.spec.model import RunSpec
from fedplat.spec.privacy import sampling_rate, steps_per_round


def planned_event(spec: RunSpec, num_units: int) -> SampledGaussian:
    """All noised steps of a private run at a silo with `num_units` patients or records in its training set.

    The noise multiplier is the spec's, or the least that keeps the whole run within its epsilon. PrivacyError if there
    is none.
    """
    steps = spec.rounds.count * steps_per_round(spec, num_units)
    return _planned(
        sampling_rate(spec, num_units), steps, spec.privacy.noise_multiplier, spec.privacy.epsilon, spec.privacy.delta
    )


@lru_cache(maxsize=64)
def _planned(
    rate: float, steps: int, noise: float | None, epsilon: float | None, delta: float | None
) -> SampledGaussian:
    if noise is None:
        assert epsilon is not None
        assert delta is not None
        noise = calibrate(target_epsilon=epsilon, delta=delta, sampling_rate=rate, num_steps=steps)
    return SampledGaussian(sampling_rate=rate, noise_multiplier=noise, num_steps=steps)
