"""The terms of a masked step, as each side works them out from the question itself."""

from __future__ import annotations

from dataclasses import dataclass

from fedplat.canonical import canonical_json, sha256_hex
from fedplat.errors import WireError
from fedplat.metrics import MetricSums
from fedplat.secagg.figures import FiguresFormat, vector_format
from fedplat.secagg.fixedpoint import VectorFormat
from fedplat.secagg.terms import StepTerms
from fedplat.spec import RunSpec
from fedplat.wire.messages import StepRequest, TrainRequest


@dataclass(frozen=True)
class Shape:
    """What an answer is made of. `layout`: the fingerprint of the model's layout; `size`: how many coordinates are
    shared; `empty_sums`: the task's metric sums over no records."""

    layout: str
    size: int
    empty_sums: MetricSums

    @property
    def fingerprint(self) -> str:
        """The same at two silos only if all of it is."""
        return sha256_hex(canonical_json([self.layout, self.size, self.empty_sums.model_dump(mode="json")]))


def config_digest(request: StepRequest) -> str:
    """SHA-256 of everything that is asked, but the weights and the keys, which are bound by themselves, and what the
    server knows of ledgers, which grows while the same is asked again."""
    asked = request.model_dump(mode="json", exclude={"buffer": True, "ledgers": True, "masking": {"roster"}})
    return sha256_hex(canonical_json([request.kind, asked]))


def format_of(request: StepRequest, spec: RunSpec, shape: Shape) -> VectorFormat:
    """What the answer's vector holds: an update if it is to train, and the figures. WireError if the question has no
    `masking`."""
    if request.masking is None:
        raise WireError(f"step {request.step} of run {request.run} is not to be masked")
    size = shape.size if isinstance(request, TrainRequest) else 0
    figures = FiguresFormat(shape.empty_sums)
    return vector_format(len(request.masking.roster.keys), size, spec.secure_aggregation.clip_range, figures)


def step_terms(request: StepRequest, spec: RunSpec, weights: str, shape: Shape) -> StepTerms:
    """`weights`: the digest of the weights as they travel. Each side knows the shape by itself, so what is different
    in two places gives different terms, and masks that do not cancel."""
    return StepTerms(
        step=request.step,
        silos=request.roster,
        strong=spec.secure_aggregation.strong,
        weights=weights,
        config=config_digest(request),
        layout=shape.fingerprint,
        vector=format_of(request, spec, shape),
    )
