"""What was released, as frozen facts whose meaning never changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fedplat.privacy.errors import PrivacyError
from fedplat.privacy.values import is_count, is_number

_MOST_STEPS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SampledGaussian:
    """Sums of clipped contributions over Poisson samples, each released with Gaussian noise.

    One step of DP-SGD is one step here, an empty batch and a repeated step too; a noised metric over everyone is a step
    of sampling rate 1. A record is in the sample of a step with probability `sampling_rate`, independently of all else;
    the noise has standard deviation `noise_multiplier` times the clip norm.
    """

    sampling_rate: float
    """In (0, 1]; 1 is the plain Gaussian mechanism."""
    noise_multiplier: float
    num_steps: int

    def __post_init__(self) -> None:
        if not (is_number(self.sampling_rate) and 0 < self.sampling_rate <= 1):
            raise PrivacyError(
                f"sampling_rate is {self.sampling_rate!r}",
                hint="a probability above 0 and at most 1: expected batch size / number of records",
            )
        if not (is_number(self.noise_multiplier) and 0 < self.noise_multiplier < math.inf):
            raise PrivacyError(
                f"noise_multiplier is {self.noise_multiplier!r}",
                hint="a finite number above 0; what was released without noise has no epsilon",
            )
        if not (is_count(self.num_steps) and self.num_steps <= _MOST_STEPS):
            raise PrivacyError(f"num_steps is {self.num_steps!r}", hint="a whole number, at most ten million")


def merged(events: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    """The same releases with equal mechanisms added up, in one order: composition does not depend on who came first."""
    num_steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        if not isinstance(event, SampledGaussian):
            raise PrivacyError(f"{event!r} is not an event", hint="pass a list of SampledGaussian")
        num_steps[float(event.sampling_rate), float(event.noise_multiplier)] += int(event.num_steps)
    return tuple(
        SampledGaussian(sampling_rate=rate, noise_multiplier=noise, num_steps=steps)
        for (rate, noise), steps in sorted(num_steps.items())
        if steps
    )
