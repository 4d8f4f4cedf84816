"""Three silos that have signed what they charged, and a run of two of them, without a server."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache

from fedplat.canonical import sha256_hex
from fedplat.identity import fingerprint, new_key, public_pem
from fedplat.ledger import Deed, SignedStatement, Statement, sign_statement, to_wire
from fedplat.privacy import SampledGaussian, epsilon
from fedplat.report.federation.assemble import make_federation_report
from fedplat.report.federation.material import (
    FederatedRun,
    FederationMaterial,
    MaskingFacts,
    SiloFacts,
    Testimony,
)
from fedplat.report.federation.model import FederationFile
from fedplat.report.signing import sign_federation
from tests.unit.report.scene import spec_facts, steps

SERVER = new_key()
KEYS = {name: new_key() for name in ("hospital-a", "hospital-b", "hospital-c")}
AT = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
DELTA = 1e-5


def statement(
    silo: str,
    deed: Deed,
    spent: Iterable[SampledGaussian],
    events: Iterable[SampledGaussian] = (),
    *,
    run: str = "r-2",
    **more: object,
) -> SignedStatement:
    total = tuple(spent)
    facts = {
        "silo": silo,
        "era": 0,
        "seq": 5,
        "head": sha256_hex(silo),
        "at": AT,
        "deed": deed,
        "run": run,
        "dataset": "heart",
        "population": sha256_hex(silo)[:32],
        "unit": "patient",
        "events": to_wire(events),
        "spent": to_wire(total),
        "reserved": (),
        "epsilon": epsilon(total, delta=DELTA),
        "delta": DELTA,
        "budget": 3.0,
    }
    return sign_statement(KEYS[silo], Statement.model_validate(facts | more))


def last_word(signed: SignedStatement, silo: str, **more: object) -> Testimony:
    facts = {
        "told": Statement.model_validate_json(signed.statement),
        "signed": signed,
        "key": public_pem(KEYS[silo]),
        "fingerprint": fingerprint(KEYS[silo].public_key()),
        "is_by_key": True,
        "countersigned": 3,
    }
    return Testimony.model_validate(facts | more)


def facts(silo: str, before: int, of_run: int, **more: object) -> SiloFacts:
    """`before` steps in run r-1, then `of_run` in run r-2, each in one release."""
    total = [steps(before + of_run)]
    releases = [
        statement(silo, Deed.SPENT, [steps(before)], [steps(before)], run="r-1"),
        statement(silo, Deed.SPENT, total, [steps(of_run)]),
    ]
    told = {
        "silo": silo,
        "dataset": "heart",
        "latest": last_word(statement(silo, Deed.CLOSED, total), silo),
        "releases": tuple(releases),
        "rounds": (1, 2, 3, 4),
    }
    return SiloFacts.model_validate(told | more)


def run_facts(**more: object) -> FederatedRun:
    told = {
        "id": "r-2",
        "spec_hash": sha256_hex("spec"),
        "mode": "record",
        "delta": DELTA,
        "spec": spec_facts("noised"),
        "state": "finished",
        "reason": "",
        "created_at": AT,
        "finished_at": AT,
        "num_rounds_committed": 4,
        "num_silos_asked": 3,
        "model_hash": sha256_hex("model"),
        "masking": MaskingFacts(num_sums=4, smallest_cohort=2, colluders_tolerated=0, num_confirmed=1),
    }
    return FederatedRun.model_validate(told | more)


def material(**changes: object) -> FederationMaterial:
    told: dict[str, object] = {
        "made_at": AT,
        "server": "localhost:8443",
        "subject": "run r-2",
        "run": run_facts(),
        "silos": (facts("hospital-a", 200, 300), facts("hospital-b", 400, 600), facts("hospital-c", 100, 100)),
    }
    return FederationMaterial.model_validate(told | changes)


@cache
def signed() -> FederationFile:
    return sign_federation(SERVER, make_federation_report(material()))
