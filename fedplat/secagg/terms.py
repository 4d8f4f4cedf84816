"""The terms of a step: what every silo must have seen alike for its masks to cancel."""

from __future__ import annotations

from dataclasses import dataclass

from fedplat.secagg.fixedpoint import VectorFormat
from fedplat.secagg.keys import digest
from fedplat.secagg.thresholds import threshold


@dataclass(frozen=True)
class StepTerms:
    """A step as one side knows it. A silo fills it from what it received and computes every digest itself."""

    step: int
    silos: tuple[str, ...]
    """The silos invited to the step, in roster order."""
    strong: bool
    weights: str
    """Digest of the received weights."""
    config: str
    """Digest of everything else that the training depends on."""
    layout: str
    """Fingerprint of the model's layout."""
    vector: VectorFormat

    @property
    def threshold(self) -> int:
        """t of the step's silos."""
        return threshold(len(self.silos), self.strong)

    def context(self, roster_hash: bytes) -> bytes:
        """ctx: the digest that all keys of the step are bound to."""
        return digest(
            "step",
            roster_hash,
            self.step,
            len(self.silos),
            *self.silos,
            self.threshold,
            self.weights,
            self.config,
            self.layout,
            *self.vector.fields(),
        )
