"""The door, and what it says to those who knock with nonsense."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import fedplat.privacy
from fedplat.privacy import (
    PrivacyError,
    SampledGaussian,
    calibrate,
    delta,
    epsilon,
    largest_tpr,
    merged,
)
from tests.unit.privacy.reference import event

GOOD: dict[str, Any] = {"sampling_rate": 0.01, "noise_multiplier": 1.0, "num_steps": 1000}


def test_the_public_door() -> None:
    """In a fresh process, without torch and without Opacus, and at once where only events are needed."""
    code = """
import sys
from fedplat.privacy import SampledGaussian, epsilon
assert not {"scipy", "dp_accounting"} & set(sys.modules)
print(epsilon([SampledGaussian(sampling_rate=.01, noise_multiplier=1.0, num_steps=1000)], delta=1e-5))
assert not {"torch", "opacus"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert round(float(done.stdout), 3) == 1.828
    assert done.stderr == ""


def test_exported_names() -> None:
    assert fedplat.privacy.__all__ == sorted(fedplat.privacy.__all__)
    assert all(hasattr(fedplat.privacy, name) for name in fedplat.privacy.__all__)


def test_an_event_is_a_frozen_fact() -> None:
    one = SampledGaussian(**GOOD)
    assert one == SampledGaussian(**GOOD)
    assert hash(one) == hash(SampledGaussian(**GOOD))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.num_steps = 1  # type: ignore[misc]


def test_merged_adds_equal_mechanisms_and_sorts() -> None:
    assert merged(iter([event(0.5, 2.0, 3), event(0.1, 2.0, 1), event(0.5, 2.0, 4), event(0.5, 1.0, 0)])) == (
        event(0.1, 2.0, 1),
        event(0.5, 2.0, 7),
    )


def test_numbers_of_other_kinds_mean_the_same() -> None:
    numbers: dict[str, Any] = {"sampling_rate": 1, "noise_multiplier": np.float64(5.0), "num_steps": np.int64(20)}
    whole = SampledGaussian(**numbers)
    assert epsilon([whole], delta=1e-5) == epsilon([event(1.0, 5.0, 20)], delta=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("sampling_rate", value) for value in (0, -0.1, 1.1, math.nan, math.inf, "0.1", None, True)),
        *(("noise_multiplier", value) for value in (0, -1.0, math.nan, math.inf, "1", None, True)),
        *(("num_steps", value) for value in (-1, 1.5, 10.0, "10", None, True, 10_000_001)),
    ],
)
def test_an_impossible_event_is_refused(field: str, value: object) -> None:
    with pytest.raises(PrivacyError) as error:
        SampledGaussian(**GOOD | {field: value})
    assert error.value.message == f"{field} is {value!r}"
    assert error.value.hint


@pytest.mark.parametrize("value", [0, 1, -1e-5, 2.0, math.nan, "1e-5", True])
def test_an_impossible_delta_is_refused(value: Any) -> None:
    with pytest.raises(PrivacyError, match="delta is"):
        epsilon([], delta=value)


def test_a_delta_that_drowns_in_rounding_errors_is_refused() -> None:
    with pytest.raises(PrivacyError, match="too small to compute with") as error:
        epsilon([event(0.01, 1.0, 100_000)], delta=1e-11)
    assert "at least 1.0e-10" in error.value.hint


def test_other_impossible_questions() -> None:
    events = [SampledGaussian(**GOOD)]
    with pytest.raises(PrivacyError, match="epsilon is -1"):
        delta(events, epsilon=-1)
    with pytest.raises(PrivacyError, match=r"fpr is 1\.5"):
        largest_tpr(events, fpr=1.5)
    for records in (0, 1.5, 101):
        with pytest.raises(PrivacyError, match="records_per_patient is"):
            epsilon(events, delta=1e-5, records_per_patient=records)  # type: ignore[arg-type]
    for target in (0, -1.0, math.nan, 2000.0):
        with pytest.raises(PrivacyError, match="target_epsilon is"):
            calibrate(target_epsilon=target, delta=1e-5, sampling_rate=0.1, num_steps=10)
    with pytest.raises(PrivacyError, match="is not an event"):
        epsilon([(0.01, 1.0, 1000)], delta=1e-5)  # type: ignore[list-item]
