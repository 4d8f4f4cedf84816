"""What a run is going to release at one silo, before it begins."""

from __future__ import annotations

from functools import lru_cache

from fedplat.privacy.accountant import epsilon
from fedplat.privacy.calibration import calibrate
from fedplat.privacy.errors import PrivacyError
from fedplat.privacy.events import SampledGaussian
from fedplat.spec.model import RunSpec
from fedplat.spec.privacy import num_evaluations, sampling_rate, steps_per_round


def planned_events(spec: RunSpec, num_units: int) -> tuple[SampledGaussian, ...]:
    """All that a private run releases at a silo with `num_units` patients or records in its training set: the noised
    steps, and the noised metrics if it has them. PrivacyError if nothing keeps the whole run within its epsilon."""
    return (planned_event(spec, num_units), *planned_metrics(spec))


def planned_event(spec: RunSpec, num_units: int) -> SampledGaussian:
    """The noised steps alone.

    The noise multiplier is the spec's, or the least that keeps the whole run, metrics included, within its epsilon.
    PrivacyError if there is none.
    """
    privacy, rate = spec.privacy, sampling_rate(spec, num_units)
    steps, noise = spec.rounds.count * steps_per_round(spec, num_units), privacy.noise_multiplier
    if noise is None:
        check_metrics(spec)
        assert privacy.epsilon is not None
        assert privacy.delta is not None
        noise = _calibrated(privacy.epsilon, privacy.delta, rate, steps, planned_metrics(spec))
    return SampledGaussian(sampling_rate=rate, noise_multiplier=noise, num_steps=steps)


def planned_metrics(spec: RunSpec) -> tuple[SampledGaussian, ...]:
    """The noised metrics alone, all evaluations together; nothing where they are not noised."""
    noise = spec.privacy.metrics_noise_multiplier
    return () if noise is None else (evaluations(noise, num_evaluations(spec)),)


def evaluations(noise_multiplier: float, num: int = 1) -> SampledGaussian:
    """Evaluations whose metrics are noised: everyone is in the sums, so nothing is gained by sampling."""
    return SampledGaussian(sampling_rate=1.0, noise_multiplier=noise_multiplier, num_steps=num)


def check_metrics(spec: RunSpec) -> None:
    """PrivacyError if the noised metrics alone take the run's epsilon, whatever a silo's data are."""
    metrics, privacy = planned_metrics(spec), spec.privacy
    if not metrics or privacy.epsilon is None or privacy.delta is None:
        return
    reached = epsilon(metrics, delta=privacy.delta)
    if reached >= privacy.epsilon:
        raise PrivacyError(
            f"the noised metrics of {metrics[0].num_steps} evaluations alone come to epsilon {reached:.3f} at delta"
            f" {privacy.delta:g}, and the whole run may have {privacy.epsilon:g}",
            hint="raise [privacy] metrics_noise_multiplier or epsilon, or measure less often: [evaluation] every",
        )


@lru_cache(maxsize=64)
def _calibrated(target: float, delta: float, rate: float, steps: int, besides: tuple[SampledGaussian, ...]) -> float:
    return calibrate(target_epsilon=target, delta=delta, sampling_rate=rate, num_steps=steps, besides=besides)
