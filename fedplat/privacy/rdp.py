"""Renyi differential privacy: looser than the privacy loss distribution, and computed in another way."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedplat.privacy.events import SampledGaussian, merged
from fedplat.privacy.values import checked_delta, round_up

if TYPE_CHECKING:
    from dp_accounting.rdp import RdpAccountant

_FEW_ORDERS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)


def rdp_curve(events: Iterable[SampledGaussian]) -> list[tuple[float, float]]:
    """(order, Renyi divergence) of the composed events (Mironov, Talwar, Zhang 2019, section 3.3)."""
    accountant = _compose(events)
    curve = zip(accountant.orders.tolist(), accountant.rdp.tolist(), strict=True)
    return [(order, divergence) for order, divergence in curve if math.isfinite(divergence)]


def rdp_epsilon(events: Iterable[SampledGaussian], *, delta: float) -> float:
    """Epsilon at `delta` by the conversion of Canonne, Kamath, Steinke 2020, proposition 12; rounded up."""
    return round_up(float(_compose(events).get_epsilon(checked_delta(delta))))


def rough_epsilon(events: Iterable[SampledGaussian], *, delta: float) -> float:
    """A looser bound from few orders, at a tenth of the time: for the size of things, not for a report."""
    return float(_compose(events, _FEW_ORDERS).get_epsilon(delta))


def _compose(events: Iterable[SampledGaussian], orders: Sequence[float] | None = None) -> RdpAccountant:
    import dp_accounting as dp  # here, for it takes a second that events alone do not need
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders, dp.NeighboringRelation.REPLACE_SPECIAL)
    for event in merged(events):
        step = dp.PoissonSampledDpEvent(event.sampling_rate, dp.GaussianDpEvent(event.noise_multiplier))
        with _quiet():
            accountant.compose(step, event.num_steps)
    return accountant


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings: an order whose series does not converge only drops out of a minimum."""

    def drop(_: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
