"""From the facts to the report."""

from __future__ import annotations

from typing import Literal

from fedplat.ledger import from_wire
from fedplat.privacy import epsilon
from fedplat.report import audits, promise, sums, wording
from fedplat.report.assumptions import assumptions
from fedplat.report.figures import checked, curve, epsilon_of, loss_of
from fedplat.report.material import Material, RunFacts
from fedplat.report.model import (
    Accounting,
    CheckedEpsilon,
    CurvePoint,
    Governance,
    Kind,
    Lifetime,
    PrivacyLoss,
    PrivacyReport,
    Product,
    RunLine,
)
from fedplat.spec.governance import GovernanceSection


def make_report(material: Material) -> PrivacyReport:
    """Computes every figure from the events. Takes seconds. Raises PrivacyError for events without figures."""
    kind = _kind(material)
    loss, lifetime = _loss(material), _lifetime(material)
    accounting, private = _accounting(material, lifetime), wording.is_private(material)
    return PrivacyReport(
        kind=kind,
        made_at=material.made_at,
        silo=material.silo,
        datasets=material.datasets,
        summary=(
            *wording.summary(material, kind, loss, lifetime),
            *wording.failed(accounting.assumptions),
            *audits.alarms(material.audits),
        ),
        product=_product(material),
        dp_flavor=promise.flavor(material.unit, wording.unprotected(material), private),
        privacy_loss=loss,
        model=promise.trust_model("the silo", wording.actors(material), private),
        accounting=accounting,
        implementation=promise.implementation(),
        empirical=audits.empirical(material),
        governance=_governance(material),
    )


def _kind(material: Material) -> Kind:
    if material.subject is None:
        return Kind.LIFETIME
    return Kind.PLAN if material.is_plan else Kind.RUN


def _loss(material: Material) -> PrivacyLoss:
    run, total = material.the_run, sums.after(material)
    own = sums.alone(material, run) if run is not None else None
    return PrivacyLoss(
        privacy_unit=material.unit,
        privacy_unit_description=wording.UNITS[material.unit],
        alone=loss_of(own.events, material.delta, is_bounded=own.is_bounded) if own else None,
        lifetime=loss_of(total.events, material.delta, is_bounded=total.is_bounded),
    )


def _lifetime(material: Material) -> Lifetime:
    def reached(total: sums.Sum) -> float | None:
        return epsilon_of(total.events, material.delta, is_bounded=total.is_bounded)

    whole, budget = sums.committed(material), sums.tightest(material.limits)
    most = reached(whole)
    fits = whole.is_bounded and all(
        epsilon(whole.events, delta=limit.delta) <= limit.epsilon for limit in material.limits
    )
    return Lifetime(
        delta=material.delta,
        budget=budget.epsilon if budget else None,
        before=reached(sums.before(material)),
        after=reached(sums.after(material)),
        committed=most,
        remaining=budget.epsilon - most if budget is not None and most is not None else None,
        fits=fits if material.limits else None,
    )


def _accounting(material: Material, lifetime: Lifetime) -> Accounting:
    checks = _checks(material)
    is_bounded = sums.committed(material).is_bounded
    return Accounting(
        accountant=promise.ACCOUNTANT,
        accountant_version=promise.accountant_version(),
        composition=wording.COMPOSITION,
        assumptions=assumptions(material, checks, lifetime, is_bounded=is_bounded),
        cross_check=checks,
        lifetime=lifetime,
        limits=material.limits,
        runs=tuple(_line(material, run) for run in material.runs),
        releases=material.releases,
        lost_entries=material.lost,
        epsilon_over_releases=_curve(material),
    )


def _checks(material: Material) -> tuple[CheckedEpsilon, ...]:
    wanted: list[tuple[Literal["alone", "lifetime"], sums.Sum]] = [("lifetime", sums.after(material))]
    if material.the_run is not None:
        wanted.insert(0, ("alone", sums.alone(material, material.the_run)))
    return tuple(checked(what, total.events, material.delta) for what, total in wanted)


def _line(material: Material, run: RunFacts) -> RunLine:
    released = [release for release in material.releases if release.run == run.run]
    own = sums.charged(material, lambda name: name == run.run, lost=False)
    shown = sums.alone(material, run)
    return RunLine(
        run=run.run,
        dataset=run.dataset,
        spec_hash=run.spec_hash,
        mode=run.mode,
        unit=run.unit,
        state=run.state,
        num_releases=len(released),
        charged=sums.written(own),
        may_still_spend=run.rest,
        epsilon=epsilon_of(shown.events, material.delta, is_bounded=shown.is_bounded and run.has_privacy),
        spec=run.spec,
    )


def _curve(material: Material) -> tuple[CurvePoint, ...]:
    """Up to the first release without noise, from which on there is no bound."""
    bare = {run.run for run in material.runs if not run.has_privacy}
    releases = sorted(material.releases, key=lambda release: release.at)
    first = next((place for place, one in enumerate(releases) if one.run in bare or not one.events), len(releases))
    facts = [from_wire(release.events) for release in releases[:first]]
    return curve(from_wire(material.lost), facts, material.delta)


def _product(material: Material) -> Product:
    run = material.the_run
    names = run.dataset if run is not None else ", ".join(dataset.name for dataset in material.datasets)
    study = run.spec.study if run is not None and run.spec is not None else None
    purpose = run.spec.governance.purpose if run is not None and run.spec is not None else ""
    about = f"run {material.subject}" if run is not None else "all models trained with these patients' data"
    return Product(
        name=_name(material, study) or names or "models",
        data_curators=(material.silo,),
        data_product_type="Machine learning model",
        intended_use=purpose or "to be filled in: see governance",
        description=f"Federated training on dataset {names or 'unknown'} of silo {material.silo}: {about}.",
        spec_hash=run.spec_hash if run is not None else None,
    )


def _name(material: Material, study: str | None) -> str | None:
    if study is None or material.is_plan:
        return study or material.subject
    return f"{study}, run {material.subject}"


def _governance(material: Material) -> Governance:
    run = material.the_run
    said = run.spec.governance if run is not None and run.spec is not None else GovernanceSection()
    return Governance(
        ledger=material.book, said=wording.governance(said), to_be_filled_in=wording.to_be_filled_in(said)
    )
