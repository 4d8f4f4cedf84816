"""The same epsilon by two other accountants: a report is signed only where they agree."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedplat.privacy.accountant import epsilon
from fedplat.privacy.errors import PrivacyError
from fedplat.privacy.events import SampledGaussian, merged
from fedplat.privacy.rdp import rdp_epsilon
from fedplat.privacy.values import checked_delta

_PRV_ERROR = 0.01
_PRV_RELATIVE_ERROR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class PrvBounds:
    """Epsilon by numerical composition of privacy loss random variables (Gopi, Lee, Wutschitz 2021)."""

    lower: float
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossCheck:
    """Epsilon at `delta` by three accountants."""

    delta: float
    pld: float
    rdp: float
    prv: PrvBounds | None
    """None where Opacus is not installed, cannot compute it, or was not asked."""
    prv_error: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """What does not hold, in words; empty when the accountants agree."""
        found = []
        if self.pld > self.rdp:
            found.append(f"epsilon {self.pld:.6f} is above the RDP bound {self.rdp:.6f}")
        if self.prv is not None and not self.prv.lower <= self.pld <= self.prv.upper:
            found.append(
                f"epsilon {self.pld:.6f} is not between the PRV bounds {self.prv.lower:.6f} and {self.prv.upper:.6f}"
            )
        return (*found, self.prv_error) if self.prv_error else tuple(found)


def cross_check(events: Iterable[SampledGaussian], *, delta: float, with_prv: bool = True) -> CrossCheck:
    """Epsilon at `delta` by PLD, RDP and, where Opacus is installed and `with_prv` says so, PRV."""
    composed = merged(events)
    prv, prv_error = None, ""
    try:
        prv = prv_bounds(composed, delta=delta) if with_prv else None
    except PrivacyError as error:
        prv_error = error.message
    return CrossCheck(
        delta=delta,
        pld=epsilon(composed, delta=delta),
        rdp=rdp_epsilon(composed, delta=delta),
        prv=prv,
        prv_error=prv_error,
    )


def prv_bounds(events: Iterable[SampledGaussian], *, delta: float) -> PrvBounds | None:
    """Bounds of epsilon by Opacus, to 0.01 or a thousandth of epsilon; None where Opacus is not installed.

    Raises PrivacyError where its numbers overflow, as they do from an epsilon of about 700 on.
    """
    composed, delta = merged(events), checked_delta(delta)
    # Not an import statement: the core never needs Opacus, and only a silo has it.
    if importlib.util.find_spec("opacus") is None:
        return None
    if not composed:
        return PrvBounds(lower=0.0, upper=0.0)
    accountant = importlib.import_module("opacus.accountants").PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sampling_rate, e.num_steps) for e in composed]
    eps_error = max(_PRV_ERROR, _PRV_RELATIVE_ERROR * rdp_epsilon(composed, delta=delta))
    delta_error = delta / 1000
    # It warns of RDP orders, by which it only sizes its grid, and takes log(0) where everyone is sampled.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            # The public get_epsilon gives the upper bound alone.
            random_variable = accountant._get_dprv(eps_error=eps_error, delta_error=delta_error)
            lower, _, upper = random_variable.compute_epsilon(delta, delta_error, eps_error)
        except (RuntimeError, ValueError) as error:
            raise PrivacyError(f"the PRV accountant cannot check these events: {error}") from error
    if not np.isfinite([lower, upper]).all():
        raise PrivacyError("the PRV accountant cannot check these events: their epsilon is too large for it")
    return PrvBounds(lower=float(lower), upper=float(upper))
