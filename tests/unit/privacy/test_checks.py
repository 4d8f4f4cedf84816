"""Three accountants agree; where they do not, that is said."""

from __future__ import annotations

import importlib.util
import itertools

import pytest

from fedplat.privacy import CrossCheck, PrivacyError, PrvBounds, SampledGaussian, cross_check, prv_bounds, rdp_curve
from tests.unit.privacy.reference import event

GRID = list(
    itertools.product((0.001, 0.004, 0.01, 0.05, 0.2), (0.8, 1.0, 1.3, 2.0, 5.0), (10, 100, 1000, 10_000), (1e-5, 1e-6))
)


def agree(events: list[SampledGaussian], delta: float) -> None:
    pytest.importorskip("opacus")
    check = cross_check(events, delta=delta)
    assert check.prv is not None
    assert check.failures == ()
    assert check.prv.upper - check.prv.lower < max(0.03, 0.01 * check.pld)


def test_the_grid_has_200_settings() -> None:
    assert len(GRID) == 200


@pytest.mark.parametrize(("sampling_rate", "noise", "num_steps", "delta"), GRID[3::33])
def test_some_of_the_grid(sampling_rate: float, noise: float, num_steps: int, delta: float) -> None:
    agree([event(sampling_rate, noise, num_steps)], delta)


@pytest.mark.slow
@pytest.mark.parametrize(("sampling_rate", "noise", "num_steps", "delta"), GRID)
def test_the_grid(sampling_rate: float, noise: float, num_steps: int, delta: float) -> None:
    agree([event(sampling_rate, noise, num_steps)], delta)


@pytest.mark.parametrize(
    "events",
    [
        [event(0.01, 1.0, 1000), event(0.05, 2.0, 300), event(0.02, 0.8, 1)],
        [event(0.02, 1.2, 500), event(1.0, 20.0, 10)],
        [event(1.0, 1.0, 1)],
    ],
    ids=["three runs", "a run and noised metrics", "everyone"],
)
def test_heterogeneous_events(events: list[SampledGaussian]) -> None:
    agree(events, 1e-5)


def test_disagreement_is_said_in_words() -> None:
    check = CrossCheck(delta=1e-5, pld=2.0, rdp=1.9, prv=PrvBounds(lower=1.0, upper=1.1))
    above, outside = check.failures
    assert "2.000000" in above
    assert "RDP" in above
    assert "PRV" in outside
    assert CrossCheck(delta=1e-5, pld=0.9, rdp=1.9, prv=PrvBounds(lower=1.0, upper=1.1)).failures
    assert not CrossCheck(delta=1e-5, pld=1.0, rdp=1.9, prv=None).failures


def test_without_opacus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check = cross_check([event(0.01, 1.0, 1000)], delta=1e-5)
    assert check.prv is None
    assert check.failures == ()


def test_nothing_to_check() -> None:
    assert cross_check([], delta=1e-5).failures == ()


def test_prv_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opacus")
    from opacus.accountants import PRVAccountant

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Discrete mean differs")

    monkeypatch.setattr(PRVAccountant, "_get_dprv", refuse)
    reason = "the PRV accountant cannot check these events: Discrete mean differs"
    with pytest.raises(PrivacyError, match=reason):
        prv_bounds([event(0.01, 1.0, 1000)], delta=1e-5)
    assert cross_check([event(0.01, 1.0, 1000)], delta=1e-5).failures == (reason,)


def test_prv_overflows_in_words() -> None:
    pytest.importorskip("opacus")
    assert "too large" in cross_check([event(0.25, 0.7, 10_000)], delta=1e-5).failures[0]


def test_the_curve_has_no_order_that_did_not_converge(caplog: pytest.LogCaptureFixture) -> None:
    curve = rdp_curve([event(0.5, 0.25, 10)])
    assert len(curve) > 100
    assert all(loss < float("inf") for _, loss in curve)
    assert not caplog.records
