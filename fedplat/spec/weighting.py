"""How much a silo counts in the mean."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedplat.spec.model import RunSpec


class Weighting(StrEnum):
    """`examples`: by its training records. `uniform`: all the same. `declared`: as the spec says, by name."""

    EXAMPLES = "examples"
    UNIFORM = "uniform"
    DECLARED = "declared"


def agreed_weight(spec: RunSpec, silo: str) -> float | None:
    """What a silo that takes part counts, as the spec says; None where that depends on its data."""
    match spec.strategy.weighting:
        case Weighting.EXAMPLES:
            return None
        case Weighting.UNIFORM:
            return 1.0
        case Weighting.DECLARED:
            return spec.strategy.weights[silo]


def weight_of(spec: RunSpec, silo: str, num_examples: int) -> float:
    """What the update of a silo with so many training records counts."""
    agreed = agreed_weight(spec, silo)
    return num_examples if agreed is None else agreed


def largest_weight(spec: RunSpec) -> float | None:
    """What no silo counts more than; None where only the silos themselves know."""
    match spec.strategy.weighting:
        case Weighting.EXAMPLES:
            return spec.secure_aggregation.max_examples
        case Weighting.UNIFORM:
            return 1.0
        case Weighting.DECLARED:
            return max(spec.strategy.weights.values())


def check_weights(spec: RunSpec) -> None:
    """ValueError unless weights are declared for exactly the silos that take part."""
    weights, names = spec.strategy.weights, spec.silos.names
    if spec.strategy.weighting is not Weighting.DECLARED:
        if weights:
            raise ValueError("[strategy] weights need weighting = 'declared'")
        return
    if not names:
        raise ValueError("[strategy] weighting = 'declared' needs [silos] names: each of them gets a weight")
    if differing := sorted(weights.keys() ^ {*names}):
        raise ValueError(
            f"[strategy] weights and [silos] names differ in {', '.join(differing)}: each named silo needs one weight"
        )
