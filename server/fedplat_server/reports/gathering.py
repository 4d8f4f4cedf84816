"""From what the server answers to what a report on the federation is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fedplat.errors import NotFoundError
from fedplat.ledger import SignedStatement, Statement
from fedplat.report.federation.material import FederatedRun, FederationMaterial, MaskingFacts, SiloFacts, Testimony
from fedplat.report.material import spec_facts
from fedplat.spec import RunSpec
from fedplat_server.adminclient import AdminClient

View = Mapping[str, Any]


def gather(
    admin: AdminClient, *, run: str | None = None, silo: str | None = None, dataset: str | None = None
) -> FederationMaterial:
    """Of one run, one silo, one dataset, or all there is. Raises NotFoundError if nothing is known of that."""
    view = admin.view(f"/runs/{run}") if run is not None else None
    known = admin.view("/ledgers")
    if silo is not None and silo not in known["silos"]:
        raise NotFoundError(f"there is no silo {silo}", hint=f"There are: {', '.join(known['silos']) or 'none'}.")
    silos = tuple(_of_run(known, view) if view is not None else _of_all(known, dataset))
    silos = tuple(facts for facts in silos if silo in (None, facts.silo))
    if not silos:
        what = f"run {view['id']}" if view else f"dataset {dataset}" if dataset else "this federation"
        raise NotFoundError(
            f"no silo has trained for {what} or signed anything about it", hint="fedplat run list shows the runs."
        )
    return FederationMaterial(
        made_at=datetime.now(UTC).replace(microsecond=0),
        server=known["address"],
        subject=_subject(view, silo, dataset),
        run=_run(view) if view is not None else None,
        silos=silos,
        overlaps=_overlaps([use["spec"] for use in known["runs"]]),
    )


def _subject(run: View | None, silo: str | None, dataset: str | None) -> str:
    parts = [f"run {run['id']}"] if run else []
    parts += [f"silo {silo}"] if silo else []
    return ", ".join([*parts, *([f"dataset {dataset}"] if dataset else [])]) or "all runs of all silos"


def _of_run(known: View, run: View) -> Iterator[SiloFacts]:
    """Every silo that is in a sum of the run, or has signed something about it."""
    dataset = run["spec"]["data"]["name"]
    charged = {one["silo_name"]: one["population"] for one in known["releases"] if one["run_id"] == run["id"]}
    charged |= {one["silo_name"]: one["population"] for one in known["statements"] if one["run_id"] == run["id"]}
    rounds: Mapping[str, Sequence[int]] = next((use["rounds"] for use in known["runs"] if use["id"] == run["id"]), {})
    for silo in sorted({*charged, *rounds}):
        mine = [one for one in known["statements"] if one["silo_name"] == silo]
        found = [one for one in mine if one["population"] == charged.get(silo)]
        yield _silo(known, silo, dataset, found[0] if found else None, rounds.get(silo, ()))


def _of_all(known: View, dataset: str | None) -> Iterator[SiloFacts]:
    """Every population that silos have signed something about, and every dataset of theirs that they have not."""
    wanted = [one for one in known["statements"] if dataset in (None, one["dataset"])]
    for one in wanted:
        yield _silo(known, one["silo_name"], one["dataset"], one)
    told = {(one["silo_name"], one["dataset"]) for one in known["statements"]}
    used = {(silo, use["spec"]["data"]["name"]) for use in known["runs"] for silo in use["rounds"]}
    for silo, name in sorted(used - told):
        if dataset in (None, name):
            yield _silo(known, silo, name, None)


def _silo(known: View, silo: str, dataset: str, latest: View | None, rounds: Sequence[int] = ()) -> SiloFacts:
    releases = [
        SignedStatement(statement=one["statement"], signature=one["signature"])
        for one in known["releases"]
        if latest is not None and (one["silo_name"], one["population"]) == (silo, latest["population"])
    ]
    names = {dataset, *(Statement.model_validate_json(one.statement).dataset for one in releases)}
    bare = [
        use["id"]
        for use in known["runs"]
        if silo in use["rounds"] and use["spec"]["data"]["name"] in names and use["spec"]["privacy"]["mode"] == "none"
    ]
    return SiloFacts(
        silo=silo,
        dataset=dataset,
        latest=_testimony(latest, known["silos"][silo]) if latest is not None else None,
        releases=tuple(releases),
        rounds=tuple(rounds),
        bare_runs=tuple(bare),
    )


def _testimony(one: View, silo: View) -> Testimony:
    return Testimony(
        told=Statement.model_validate_json(one["statement"]),
        signed=SignedStatement(statement=one["statement"], signature=one["signature"]),
        key=silo["public_key_pem"],
        fingerprint=one["fingerprint"],
        is_by_key=one["fingerprint"] == silo["fingerprint"],
        countersigned=one["countersigned_seq"],
    )


def _run(view: View) -> FederatedRun:
    spec = RunSpec.model_validate(view["spec"])
    return FederatedRun(
        id=view["id"],
        spec_hash=view["spec_hash"],
        mode=spec.privacy.mode.value,
        delta=spec.privacy.delta,
        spec=spec_facts(spec),
        state=view["state"],
        reason=(view["reason"] or "")[:500],
        created_at=view["created_at"],
        finished_at=view["finished_at"],
        num_rounds_committed=view["rounds_committed"],
        num_silos_asked=len(view["silos"]),
        model_hash=view["weights_sha256"],
        masking=_masking(view["secure_steps"]) if spec.secure_aggregation.enabled else None,
    )


def _masking(steps: Sequence[View]) -> MaskingFacts:
    opened = [step for step in steps if step["cohort"] is not None]
    confirmed = [step["num_confirmed"] for step in opened if step["num_confirmed"] is not None]
    return MaskingFacts(
        num_sums=len(opened),
        smallest_cohort=min((len(step["cohort"]) for step in opened), default=0),
        colluders_tolerated=min((step["colluders_tolerated"] for step in opened), default=0),
        num_confirmed=min(confirmed, default=None),
    )


def _overlaps(specs: Sequence[View]) -> tuple[tuple[str, ...], ...]:
    """What specs declare, each once; specs from before there was such a section declare nothing."""
    groups = [tuple(sorted(group)) for spec in specs for group in spec.get("governance", {}).get("shared_patients", ())]
    return tuple(dict.fromkeys(groups))
