"""An audit of a plan: the silo's data say how many units there are; then canaries attack the training instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import torch

from fedplat import __version__
from fedplat.errors import SpecError
from fedplat.home import SiloHome
from fedplat.privacy import SampledGaussian, epsilon
from fedplat.privacy.audit import Canaries, gaussian_epsilon, noticed_noise_factor, one_run_epsilon, separation
from fedplat.privacy.planning import planned_event
from fedplat.report.material import AuditFacts
from fedplat.spec import RunSpec
from fedplat.spec.privacy import privacy_unit
from fedplat_silo.audit.canaries import attack
from fedplat_silo.planning import prepare
from fedplat_silo.tasks.registry import own_code
from fedplat_silo.trainer.dp.preparing import Preparation

CONFIDENCE = 0.95
METHOD = (
    "each canary has a gradient of ten clip norms, for a weight of its own, and is in by a fair coin; its score is the"
    " sum of all that was released for that weight. One run: Steinke, Nasr, Jagielski 2023, theorem 5.2, the best of"
    " seven numbers of guesses. Gaussian fit: lower bound of the distance of mean scores (Glass 1976), taken for that"
    " of Gaussian noise (Dong, Roth, Su 2022)"
)
_EACH = 1 - (1 - CONFIDENCE) / 2  # two bounds share the error


def audit(place: SiloHome, spec: RunSpec, max_steps: int, report: Callable[[float], None]) -> AuditFacts:
    """Takes up to a minute, for at most `max_steps` steps of the plan. `report` takes the share that is done. Raises
    SpecError, DataError, PrivacyError."""
    if not spec.privacy.is_private:
        raise _nothing_to_audit(spec)
    return audit_prepared(prepare(place, spec), max_steps, report)


def audit_prepared(preparation: Preparation, max_steps: int, report: Callable[[float], None]) -> AuditFacts:
    """Of the claim that the ledger would be charged with, on the terms that a round would be trained on."""
    spec = preparation.spec
    planned = planned_event(spec, len(preparation.units))
    claim = replace(planned, num_steps=min(planned.num_steps, max_steps))
    if math.isinf(_claimed(spec, claim)):
        raise _nothing_to_audit(spec)
    terms = replace(preparation.terms(planned.noise_multiplier), num_steps=claim.num_steps)
    canaries = attack(spec, privacy_unit(spec), terms, report)
    return _judge(preparation, planned, claim, canaries)


def _nothing_to_audit(spec: RunSpec) -> SpecError:
    return SpecError(
        f"the spec {spec.name} promises no differential privacy, so there is nothing to audit",
        hint='[privacy] mode = "record" does, with an epsilon or with enough noise.',
    )


def _claimed(spec: RunSpec, claim: SampledGaussian) -> float:
    return epsilon([claim], delta=_delta(spec))


def _delta(spec: RunSpec) -> float:
    assert spec.privacy.delta is not None  # a private spec has one
    return spec.privacy.delta


def _judge(
    preparation: Preparation, planned: SampledGaussian, claim: SampledGaussian, canaries: Canaries
) -> AuditFacts:
    spec, num = preparation.spec, len(canaries.scores)
    claimed, delta = _claimed(spec, claim), _delta(spec)
    one_run = one_run_epsilon(canaries, delta=delta, confidence=_EACH)
    gaussian = gaussian_epsilon(separation(canaries, confidence=_EACH), delta=delta)
    return AuditFacts(
        made_at=datetime.now(UTC).replace(microsecond=0),
        dataset=spec.data.name,
        spec_hash=spec.hash,
        software_version=__version__,
        code_sha256=own_code(),
        torch_version=str(torch.__version__),
        engine=preparation.engine.__name__,
        method=METHOD,
        unit=privacy_unit(spec).value,
        sampling_rate=claim.sampling_rate,
        noise_multiplier=claim.noise_multiplier,
        num_steps=claim.num_steps,
        num_planned_steps=planned.num_steps,
        num_canaries=num,
        num_included=int(canaries.included.sum()),
        delta=delta,
        confidence=CONFIDENCE,
        claimed_epsilon=claimed,
        one_run_epsilon=one_run,
        gaussian_epsilon=gaussian,
        noticed_noise_factor=noticed_noise_factor(claim, claimed, delta=delta, confidence=_EACH, num_canaries=num),
        passed=max(one_run, gaussian) <= claimed,
    )
