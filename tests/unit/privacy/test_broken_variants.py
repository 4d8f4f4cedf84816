"""The tests can fail: each broken variant of the accountant, made by replacing one function, fails a named test."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from fedplat.privacy import SampledGaussian, accountant, attacks, checks, epsilon, merged
from tests.unit.privacy import test_checks, test_reference, test_tables

pytestmark = pytest.mark.usefixtures("cold_cache")

_one_step = accountant._one_step


def restarted_each_round(events: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    return merged(list(events)[-1:])


def last_mechanism_only(events: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    return merged(events)[-1:]


def noise_halved(rate: float, noise: float, records: int, interval: float) -> accountant._Pld:
    """The trainer adds half of the noise that the accountant believes in."""
    return _one_step(rate, 2 * noise, records, interval)


def sampling_ignored(_: float, noise: float, records: int, interval: float) -> accountant._Pld:
    return _one_step(1.0, noise, records, interval)


def sampling_counted_twice(rate: float, noise: float, records: int, interval: float) -> accountant._Pld:
    return _one_step(rate**2, noise, records, interval)


def records_ignored(rate: float, noise: float, _: int, interval: float) -> accountant._Pld:
    return _one_step(rate, noise, 1, interval)


def one_step_of_many(each: SampledGaussian, records: int, interval: float) -> accountant._Pld:
    return _one_step(each.sampling_rate, each.noise_multiplier, records, interval)


def no_rounding_error(_: tuple[SampledGaussian, ...]) -> float:
    return 0.0


def two_percent_less(events: Iterable[SampledGaussian], *, delta: float) -> float:
    return 0.98 * epsilon(events, delta=delta)


def half_of_delta(events: tuple[SampledGaussian, ...], at: accountant.Vector) -> accountant.Vector:
    return accountant.deltas(events, at) / 2


def first_row() -> None:
    test_tables.test_rate_01_noise_1(*test_tables.TABLE[0])


def one_step() -> None:
    test_reference.test_one_step_by_integration(0.05, 2.0)


def two_records() -> None:
    test_tables.test_a_patient_with_several_records(2, 3.98)


def a_report() -> None:
    test_tables.test_figures_of_a_report(0.01, 1.0, 1000, (1.83, 0.161, 2.9, 0.524))


def the_grid() -> None:
    test_checks.test_some_of_the_grid(0.01, 1.0, 1000, 1e-5)


def many_steps() -> None:
    test_reference.test_the_rounding_error_covers_that_of_the_transforms(100.0, 10_000)


VARIANTS: list[tuple[object, str, Callable[..., object], Callable[[], None]]] = [
    (accountant, "merged", restarted_each_round, test_reference.test_rounds_compose_as_one_run),
    (accountant, "merged", last_mechanism_only, test_reference.test_two_runs_compose_jointly),
    (accountant, "_one_step", noise_halved, first_row),
    (accountant, "_one_step", sampling_ignored, one_step),
    (accountant, "_one_step", sampling_counted_twice, first_row),
    (accountant, "_one_step", records_ignored, two_records),
    (accountant, "_composed", one_step_of_many, first_row),
    (accountant, "_rounding_error", no_rounding_error, many_steps),
    (checks, "epsilon", two_percent_less, the_grid),
    (attacks, "deltas", half_of_delta, a_report),
]


@pytest.mark.parametrize(
    ("module", "name", "broken", "test"),
    VARIANTS,
    ids=[variant[2].__name__ for variant in VARIANTS],
)
def test_broken(
    module: object,
    name: str,
    broken: Callable[..., object],
    test: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(AssertionError):
        test()
