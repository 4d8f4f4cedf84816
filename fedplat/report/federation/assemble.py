"""From what silos have signed to the report on the federation."""

from __future__ import annotations

from functools import lru_cache

from fedplat.ledger import Unit, to_wire
from fedplat.report import promise
from fedplat.report import wording as common
from fedplat.report.federation import wording
from fedplat.report.federation.assumptions import assumptions
from fedplat.report.federation.charges import Charged, charged, composed, delta_of, groups
from fedplat.report.federation.material import FederationMaterial
from fedplat.report.federation.model import (
    Charge,
    FederationAccounting,
    FederationGovernance,
    FederationLoss,
    FederationReport,
    Group,
    SiloLine,
)
from fedplat.report.figures import checked, epsilon_of, loss_of, right_in_100, worst_of
from fedplat.report.model import CheckedEpsilon, Empirical, Loss, Product
from fedplat.report.sums import Sum
from fedplat.spec.governance import GovernanceSection


def make_federation_report(material: FederationMaterial) -> FederationReport:
    """Computes every figure from the events that silos have signed. Takes seconds a silo."""
    run = material.run.id if material.run is not None else None
    charges = [charged(facts, run) for facts in material.silos]
    delta = delta_of(material)
    loss = _loss(material, charges, delta)
    checks = _checks(material, charges, delta)
    found, private = assumptions(material, charges, loss, checks), wording.is_private(material)
    return FederationReport(
        made_at=material.made_at,
        server=material.server,
        subject=material.subject,
        summary=(*wording.summary(material, loss), *common.failed(found)),
        product=_product(material),
        dp_flavor=promise.flavor(loss.privacy_unit, wording.unprotected(material, loss.privacy_unit), private),
        privacy_loss=loss,
        model=promise.trust_model("each silo", wording.actors(material), private),
        run=material.run,
        accounting=FederationAccounting(
            accountant=promise.ACCOUNTANT,
            accountant_version=promise.accountant_version(),
            composition=wording.COMPOSITION,
            assumptions=found,
            cross_check=checks,
        ),
        implementation=promise.implementation(),
        empirical=Empirical(note=common.NO_AUDIT),
        governance=_governance(material),
    )


def _loss(material: FederationMaterial, charges: list[Charged], delta: float) -> FederationLoss:
    found = []
    for own in groups(charges, material.overlaps):
        alone = _of(composed(one.alone for one in own if one.alone), delta) if material.run is not None else None
        lifetime = _of(composed(one.lifetime for one in own), delta)
        silos = dict.fromkeys(one.facts.silo for one in own)
        found.append(Group(silos=tuple(silos), alone=alone, lifetime=lifetime))
    alones = [group.alone for group in found if group.alone is not None]
    return FederationLoss(
        delta=delta,
        privacy_unit=_unit(material),
        rule=wording.rule(material),
        silos=tuple(_line(one, delta) for one in charges),
        groups=tuple(found),
        alone=worst_of(alones) if alones else None,
        lifetime=worst_of([group.lifetime for group in found]),
    )


@lru_cache(maxsize=256)
def _of(total: Sum, delta: float) -> Loss:
    return loss_of(total.events, delta, is_bounded=total.is_bounded)


def _line(one: Charged, delta: float) -> SiloLine:
    said = one.facts.latest
    return SiloLine(
        silo=one.facts.silo,
        dataset=one.facts.dataset,
        unit=said.told.unit if said else None,
        num_rounds=len(one.facts.rounds),
        alone=_charge(one.alone, delta) if one.alone is not None else None,
        alone_is_known=one.alone_is_known,
        lifetime=_charge(one.lifetime, delta),
        may_still_spend=said.told.reserved if said else (),
        budget=said.told.budget if said else None,
        signed_epsilon=said.told.epsilon if said else None,
        statement=said.signed if said else None,
        statement_key=said.key if said and said.is_by_key else None,
        fingerprint=said.fingerprint if said else None,
        signed_at=said.told.at if said else None,
    )


def _charge(total: Sum, delta: float) -> Charge:
    loss = _of(total, delta)
    return Charge(
        events=to_wire(total.events),
        epsilon=loss.epsilon,
        membership_advantage=loss.membership_advantage,
        right_in_100=right_in_100(loss.membership_advantage),
    )


def _checks(material: FederationMaterial, charges: list[Charged], delta: float) -> tuple[CheckedEpsilon, ...]:
    """Of the group of silos with the largest epsilon; each silo's own figure is compared with what it has signed."""
    sums = [composed(one.lifetime for one in own) for own in groups(charges, material.overlaps)]
    worst = max(sums, key=lambda total: epsilon_of(total.events, delta) or 0.0)
    # Opacus would load torch, which a server does not need; the silos check their own figures by it, and sign them.
    return (checked("lifetime", worst.events, delta, with_prv=False),)


def _unit(material: FederationMaterial) -> Unit:
    """The weakest of what was protected; nothing bounds those who have signed nothing anyway."""
    units = {facts.latest.told.unit for facts in material.silos if facts.latest}
    return "patient" if units == {"patient"} else "record"


def _product(material: FederationMaterial) -> Product:
    run, names = material.run, tuple(dict.fromkeys(facts.silo for facts in material.silos))
    signed = {facts.silo for facts in material.silos if facts.latest is not None}
    who = f"{len(signed)} silos" if len(signed) == len(names) else f"{len(signed)} of {len(names)} silos"
    purpose = run.spec.governance.purpose if run is not None else ""
    return Product(
        name=run.spec.study if run is not None else material.subject,
        data_curators=names,
        data_product_type="Machine learning model",
        intended_use=purpose or "to be filled in: see governance",
        description=f"Federated training: {material.subject}, as {who} have signed it.",
        spec_hash=run.spec_hash if run is not None else None,
    )


def _governance(material: FederationMaterial) -> FederationGovernance:
    said = material.run.spec.governance if material.run is not None else GovernanceSection()
    return FederationGovernance(said=common.governance(said), to_be_filled_in=common.to_be_filled_in(said))
