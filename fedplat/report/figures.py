"""Events in, figures out: upper bounds, or None where there is no bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from fedplat.privacy import (
    SampledGaussian,
    advantage,
    cross_check,
    epsilon,
    gdp_mu,
    largest_tpr,
    rdp_curve,
)
from fedplat.report.model import CheckedEpsilon, CurvePoint, Loss, RatePoint, RenyiPoint

_RATES = (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, *(step / 20 for step in range(2, 21)))
_MOST_POINTS = 24
Facts = tuple[SampledGaussian, ...]


def bounded(value: float) -> float | None:
    """None in place of infinity, for which JSON has no word."""
    return value if math.isfinite(value) else None


def epsilon_of(events: Iterable[SampledGaussian], delta: float, *, is_bounded: bool = True) -> float | None:
    """Epsilon of the composed events; `is_bounded`: False if something was released besides, without noise."""
    return bounded(epsilon(events, delta=delta)) if is_bounded else None


def loss_of(events: Facts, delta: float, *, is_bounded: bool = True) -> Loss:
    """All figures of the composed events."""
    if not is_bounded:
        return _no_protection(delta)
    gain = min(1.0, advantage(events))
    return Loss(
        epsilon=epsilon_of(events, delta),
        delta=delta,
        membership_advantage=gain,
        right_in_100=right_in_100(gain),
        gdp_mu=bounded(gdp_mu(events)),
        trade_off=tuple(RatePoint(fpr=rate, tpr=min(1.0, largest_tpr(events, fpr=rate))) for rate in _RATES),
        rdp_curve=tuple(RenyiPoint(order=order, divergence=divergence) for order, divergence in rdp_curve(events)),
    )


def right_in_100(gain: float) -> int:
    """How often in 100 the best attack on one patient is right: 50 (1 + advantage), rounded up."""
    # To nine digits first: 50 * (1 + 0.16) is a hair above 58 in binary, and is 58.
    return min(100, math.ceil(round(50 * (1 + gain), 9)))


def worst_of(losses: Sequence[Loss]) -> Loss:
    """Figure by figure the largest, None if one of them has no bound. At least one; all at the same delta."""
    bounded_all = all(loss.epsilon is not None for loss in losses)
    curves = [{point.order: point.divergence for point in loss.rdp_curve} for loss in losses]
    orders = sorted(set.intersection(*(set(curve) for curve in curves))) if bounded_all else []
    return Loss(
        epsilon=_largest([loss.epsilon for loss in losses]),
        delta=losses[0].delta,
        membership_advantage=max(loss.membership_advantage for loss in losses),
        right_in_100=max(loss.right_in_100 for loss in losses),
        gdp_mu=_largest([loss.gdp_mu for loss in losses]),
        trade_off=tuple(
            RatePoint(fpr=points[0].fpr, tpr=max(point.tpr for point in points))
            for points in zip(*(loss.trade_off for loss in losses), strict=True)
        ),
        rdp_curve=tuple(RenyiPoint(order=order, divergence=max(c[order] for c in curves)) for order in orders),
    )


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def checked(
    what: Literal["alone", "lifetime"], events: Facts, delta: float, *, with_prv: bool = True
) -> CheckedEpsilon:
    """The figure beside what other accountants say; `with_prv` loads Opacus where it is installed."""
    found = cross_check(events, delta=delta, with_prv=with_prv)
    return CheckedEpsilon(
        what=what,
        delta=delta,
        pld=bounded(found.pld),
        rdp=bounded(found.rdp),
        prv_lower=found.prv.lower if found.prv else None,
        prv_upper=found.prv.upper if found.prv else None,
        failures=found.failures,
    )


def curve(lost: Facts, releases: Sequence[Facts], delta: float) -> tuple[CurvePoint, ...]:
    """Epsilon after each release, or after some, evenly spread, where there are many; stops where there is no bound."""
    num, points = len(releases), []
    for place in sorted({math.ceil(num * step / _MOST_POINTS) for step in range(_MOST_POINTS + 1)}):
        reached = epsilon_of([*lost, *(event for release in releases[:place] for event in release)], delta)
        if reached is None:
            break
        points.append(CurvePoint(num_releases=place, epsilon=reached))
    return tuple(points)


def _no_protection(delta: float) -> Loss:
    return Loss(
        epsilon=None,
        delta=delta,
        membership_advantage=1.0,
        right_in_100=100,
        gdp_mu=None,
        trade_off=tuple(RatePoint(fpr=rate, tpr=1.0) for rate in _RATES),
        rdp_curve=(),
    )
