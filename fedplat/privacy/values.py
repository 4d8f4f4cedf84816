"""What comes in is a number in its range; what goes out is rounded to the safe side."""

from __future__ import annotations

import math
from numbers import Integral, Real

from fedplat.privacy.errors import PrivacyError

_DECIMALS = 6


def round_up(value: float, decimals: int = _DECIMALS) -> float:
    """Up to `decimals`: what differs between processors and library versions lies far below and rounds away."""
    scale = 10**decimals
    return math.ceil(value * scale) / scale if math.isfinite(value) else value


def is_number(value: object) -> bool:
    """A real number, which a bool is not."""
    return not isinstance(value, bool) and isinstance(value, Real)


def is_count(value: object) -> bool:
    """A whole number, at least 0."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


def checked_delta(delta: float) -> float:
    """`delta`, strictly between 0 and 1."""
    if not (is_number(delta) and 0 < delta < 1):
        raise PrivacyError(
            f"delta is {delta!r}", hint="a probability between 0 and 1, well below 1 / number of patients, as 1e-5"
        )
    return float(delta)
