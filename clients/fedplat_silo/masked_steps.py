"""A run's part in secure aggregation: what its updates become before they leave, and what may be asked of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from fedplat.canonical import sha256_hex
from fedplat.home import SiloHome
from fedplat.params import Vector
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.figures import Figures, FiguresFormat, part_of
from fedplat.secagg.keys import KEY_BYTES, expand
from fedplat.secagg.messages import TrainPart
from fedplat.spec import RunSpec
from fedplat.spec.weighting import largest_weight, weight_of
from fedplat.wire.messages import EvaluateRequest, Masking, StepRequest, TrainRequest
from fedplat.wire.terms import Shape, format_of, step_terms
from fedplat_silo.masked import masked, quantised, vector_digest, words_of
from fedplat_silo.masker import Masker
from fedplat_silo.policy import Policy
from fedplat_silo.records import load_shape, remember_shape
from fedplat_silo.spool import Order, Stored
from fedplat_silo.trainer.group import Ready


class MaskedSteps:
    """One run's masked steps at this silo. `ready`: asks the workers what the run trains with, where that is not on
    disk from the join."""

    def __init__(self, run: str, spec: RunSpec, home: SiloHome, ready: Callable[[], Ready]) -> None:
        self._run = run
        self._spec = spec
        self._home = home
        self._ready = ready
        self._known_masker: Masker | None = None
        self._known_shape: Shape | None = None

    def join(self, ready: Ready, parent: str | None) -> None:
        """Begins with fresh keys, or goes on with those of before. `parent`: the run that this one continues.
        RefusedError if this silo has more records than the run allows."""
        most = largest_weight(self._spec)
        if most is not None and self._weight(ready) > most:
            raise RefusedError(Refusal.WEIGHT_TOO_LARGE)
        remember_shape(self._home, self._run, _shape_of(ready))
        self._known_masker = Masker(self._home, self._run, self._spec, parent)

    @property
    def masker(self) -> Masker:
        """Keys, masks, signatures and answers."""
        if self._known_masker is None:
            self._known_masker = Masker(self._home, self._run, self._spec)
        return self._known_masker

    def vector(self, request: StepRequest) -> str:
        """Names the way from an update to the numbers that are masked."""
        return vector_digest(self._asked(request), format_of(request, self._spec, self._shape()))

    def check(self, policy: Policy, request: StepRequest, order: Order) -> None:
        """RefusedError for a step that would be refused once the update is there: before it is trained for."""
        terms = step_terms(request, self._spec, order.weights, self._shape())
        self.masker.check(policy, self._asked(request).roster, terms)

    def quantised(
        self,
        request: TrainRequest | EvaluateRequest,
        ready: Ready,
        order: Order,
        update: Vector | None,
        figures: Figures,
    ) -> Iterator[memoryview]:
        """The vector that is going to be masked, in blocks. RefusedError for what cannot be."""
        shape, masking = self._shape(), self._asked(request)
        vector = format_of(request, self._spec, shape)
        rounding_key = self._rounding_key(request.round)
        weight = 1 if update is None else part_of(vector.limit, self._weight(ready), masking.max_weight)
        return quantised(
            np.empty(0, dtype=np.float32) if update is None else update,
            weight,
            vector,
            FiguresFormat(shape.empty_sums),
            rounding_key,
            expand(rounding_key, "hidden", sha256_hex(order.model_dump_json())),
            lambda num_clipped, norm: replace(figures, weight=weight, num_clipped=num_clipped, norm=norm),
        )

    def open(
        self, policy: Policy, request: StepRequest, order: Order, stored: Stored
    ) -> tuple[TrainPart, Iterator[memoryview]]:
        """Opens the step for the vector in the spool, on disk when this returns; what to say of it, and the vector
        with its masks on, in blocks."""
        terms = step_terms(request, self._spec, order.weights, self._shape())
        part = self.masker.begin(policy, self._asked(request).roster, terms, words_of(stored.region))
        return part, masked(stored.region, self.masker.masks())

    def _asked(self, request: StepRequest) -> Masking:
        """RefusedError if it is not to be masked, in a run that is; or weighs by another number than the spec says,
        for a server that may choose one learns from refusals how many records there are."""
        if request.masking is None:
            raise RefusedError(Refusal.NOT_MASKED)
        agreed = largest_weight(self._spec)
        if agreed is not None and request.masking.max_weight != agreed:
            raise RefusedError(Refusal.STEP_CHANGED)
        return request.masking

    def _weight(self, ready: Ready) -> float:
        return weight_of(self._spec, self._home.name, ready.num_train)

    def _rounding_key(self, round_number: int) -> bytes:
        """Under differential privacy nobody can ever compute it again: the whole numbers are in the spool."""
        if self._spec.privacy.is_private:
            return secrets.token_bytes(KEY_BYTES)
        return self.masker.rounding_key(self._spec.hash, round_number)

    def _shape(self) -> Shape:
        """What this silo's answers are made of: as it was found at the join, else by the workers."""
        if self._known_shape is None:
            self._known_shape = load_shape(self._home, self._run) or _shape_of(self._ready())
        return self._known_shape


def _shape_of(ready: Ready) -> Shape:
    assert ready.empty_sums is not None
    return Shape(ready.layout.fingerprint, ready.layout.size, ready.empty_sums)
