"""Facts of a silo that nobody had to train for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

from fedplat.canonical import sha256_hex
from fedplat.identity import new_key
from fedplat.ledger import to_wire
from fedplat.privacy import SampledGaussian
from fedplat.report import (
    BookFacts,
    DatasetFacts,
    Limit,
    Material,
    Release,
    ReportFile,
    RunFacts,
    RunState,
    SpecFacts,
    make_report,
    sign_report,
)

KEY = new_key()
AT = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def steps(num: int, noise: float = 1.0, rate: float = 0.01) -> SampledGaussian:
    return SampledGaussian(sampling_rate=rate, noise_multiplier=noise, num_steps=num)


def run(name: str, state: RunState = RunState.CLOSED, *, rest: int = 0, **more: object) -> RunFacts:
    facts = {
        "run": name,
        "dataset": "heart",
        "spec_hash": sha256_hex(name),
        "mode": "record",
        "unit": "patient",
        "state": state,
        "has_privacy": True,
        "rest": to_wire([steps(rest)]) if rest else (),
    }
    return RunFacts.model_validate(facts | more)


def release(name: str, number: int, num_steps: int) -> Release:
    return Release(
        at=AT + timedelta(hours=number),
        run=name,
        round=number,
        attempt=f"d{number}",
        events=to_wire([steps(num_steps)]) if num_steps else (),
    )


def spec_facts(metrics: str = "none") -> SpecFacts:
    return SpecFacts(
        study="heart",
        task="tabular",
        num_rounds=4,
        clip_norm=1.0,
        expected_batch_size=8,
        metrics=metrics,
        secure_aggregation=False,
    )


def material(**changes: object) -> Material:
    """A thousand patients, one run over of 400 steps in four releases, one open of 600 with 400 still to come."""
    facts: dict[str, object] = {
        "made_at": AT,
        "silo": "hospital-a",
        "book": BookFacts(seq=9, head=sha256_hex("head"), countersigned=7),
        "datasets": (DatasetFacts(name="heart", num_records=1500, num_patients=1000),),
        "unit": "patient",
        "limits": (Limit(epsilon=3, delta=1e-5, unit="patient"),),
        "delta": 1e-5,
        "runs": (run("r-1"), run("r-2", RunState.OPEN, rest=400, spec=spec_facts())),
        "releases": tuple(release("r-1", n, 100) for n in range(1, 5))
        + tuple(release("r-2", n, 100) for n in range(5, 11)),
        "subject": "r-2",
    }
    return Material.model_validate(facts | changes)


@cache
def signed() -> ReportFile:
    return sign_report(KEY, make_report(material()))
