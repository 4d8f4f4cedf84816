"""Privacy accounting: from what was released to epsilon, and to what it means for a patient.

Events are facts (sampling rate, noise multiplier, steps); every figure is computed from all of them together, so
several runs on the same patients compose exactly. Adjacency is zero-out: the number of records is public. No figure is
below the truth: epsilon, delta, advantage and true positive rates are upper bounds, rounded up. Needs no torch.

    from fedplat.privacy import SampledGaussian, epsilon

    epsilon([SampledGaussian(sampling_rate=0.01, noise_multiplier=1.0, num_steps=1000)], delta=1e-5)  # 1.828...
"""

from __future__ import annotations

from fedplat.privacy.accountant import delta, epsilon
from fedplat.privacy.attacks import advantage, advantage_from_epsilon, gdp_mu, largest_tpr
from fedplat.privacy.calibration import calibrate
from fedplat.privacy.checks import CrossCheck, PrvBounds, cross_check, prv_bounds
from fedplat.privacy.errors import PrivacyError
from fedplat.privacy.events import SampledGaussian, merged
from fedplat.privacy.rdp import rdp_curve, rdp_epsilon

__all__ = [
    "CrossCheck",
    "PrivacyError",
    "PrvBounds",
    "SampledGaussian",
    "advantage",
    "advantage_from_epsilon",
    "calibrate",
    "cross_check",
    "delta",
    "epsilon",
    "gdp_mu",
    "largest_tpr",
    "merged",
    "prv_bounds",
    "rdp_curve",
    "rdp_epsilon",
]
