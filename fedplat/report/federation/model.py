"""The report on the federation, field by field."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime

from fedplat.ledger import Delta, Digest, Epsilon, Events, SignedStatement, SiloName, Unit
from fedplat.report.base import Count, Part, Share
from fedplat.report.federation.material import FederatedRun
from fedplat.report.model import (
    Assumption,
    CheckedEpsilon,
    Empirical,
    Flavor,
    Implementation,
    Loss,
    Product,
    ReportSignature,
    TrustModel,
)


class Charge(Part):
    """What one silo's patients were charged. `epsilon`: None if there is no bound."""

    events: Events
    epsilon: Epsilon | None
    membership_advantage: Share
    right_in_100: Count


class SiloLine(Part):
    """A population at a silo. `alone`: by the run that the report is about; `lifetime`: by all runs, this one included.

    `alone_is_known`: False if not every release of the run is there as the silo has signed it; `alone` is then what
    `lifetime` is, which is at least as much. `statement`: what the silo has signed last, with the key that it is
    enrolled with; None if it has signed nothing, so that nothing bounds it.
    """

    silo: SiloName
    dataset: str
    unit: Unit | None
    num_rounds: Count
    alone: Charge | None
    alone_is_known: bool
    lifetime: Charge
    may_still_spend: Events
    budget: Epsilon | None
    signed_epsilon: Epsilon | None
    statement: SignedStatement | None
    statement_key: str | None
    fingerprint: Digest | None
    signed_at: AwareDatetime | None


class Group(Part):
    """Silos whose patients may be the same, so that their losses compose; most groups have one silo."""

    silos: tuple[SiloName, ...]
    alone: Loss | None
    lifetime: Loss


class FederationLoss(Part):
    """`alone`, `lifetime`: the worst of all groups, figure by figure; a patient is in one group."""

    delta: Delta
    privacy_unit: Unit
    rule: str
    silos: tuple[SiloLine, ...]
    groups: tuple[Group, ...]
    alone: Loss | None
    lifetime: Loss


class FederationAccounting(Part):
    """How the figures come about: each is computed from the events that the silos have signed."""

    accountant: str
    accountant_version: str
    composition: str
    assumptions: tuple[Assumption, ...]
    cross_check: tuple[CheckedEpsilon, ...]


class FederationGovernance(Part):
    """What the spec's [governance] says (label, text), and what people have to add by hand."""

    said: tuple[tuple[str, str], ...]
    to_be_filled_in: tuple[str, ...]


class FederationReport(Part):
    """The whole report. Every figure is an upper bound, rounded up."""

    version: Literal[1] = 1
    scope: Literal["federation"] = "federation"
    made_at: AwareDatetime
    server: str
    subject: str
    summary: tuple[str, ...]
    product: Product
    dp_flavor: Flavor
    privacy_loss: FederationLoss
    model: TrustModel
    run: FederatedRun | None
    accounting: FederationAccounting
    implementation: Implementation
    empirical: Empirical
    governance: FederationGovernance


class FederationFile(Part):
    """A report as it is kept: with the server's signature, or with why there is none."""

    report: FederationReport
    signature: ReportSignature | None
    unsigned_because: str = ""
