"""The report, field by field; the parts and many names are those of the OpenDP deployments registry."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from fedplat.ledger import Delta, Digest, Epsilon, Events, Name, Signature, SiloName, Unit
from fedplat.report.base import Count, Part, Share
from fedplat.report.material import AuditFacts, BookFacts, DatasetFacts, Limit, Release, RunName, RunState, SpecFacts


class Kind(StrEnum):
    """What the report is about: the patients of a dataset for life, one run, or a run before it begins."""

    LIFETIME = "lifetime"
    RUN = "run"
    PLAN = "plan"


class Status(StrEnum):
    """`declared`: nobody can see it in the ledger; whoever signs relies on the software or on people."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    DECLARED = "declared"


class Assumption(Part):
    """What the figures rest on."""

    name: Name
    status: Status
    statement: str
    detail: str = ""


class RatePoint(Part):
    """No test has a higher true positive rate at this false positive rate."""

    fpr: Share
    tpr: Share


class RenyiPoint(Part):
    """A point of the RDP curve."""

    order: float
    divergence: float


class Loss(Part):
    """What some releases cost together. `epsilon`, `gdp_mu`: None if there is no bound.

    `right_in_100`: how often the best attack is right about one patient, where a coin is right 50 times; rounded up.
    """

    epsilon: Epsilon | None
    delta: Delta
    membership_advantage: Share
    right_in_100: Annotated[int, Field(ge=50, le=100)]
    gdp_mu: float | None
    trade_off: tuple[RatePoint, ...]
    rdp_curve: tuple[RenyiPoint, ...]


class Product(Part):
    """What is made from the data."""

    name: str
    data_curators: tuple[str, ...]
    data_product_type: str
    intended_use: str
    description: str
    spec_hash: Digest | None


class Flavor(Part):
    """Which promise this is, and what it does not cover."""

    name: str
    input_metric: str
    bound_on_input_distance: int
    output_measure: str
    data_domain: str
    unprotected_quantities: tuple[str, ...]


class PrivacyLoss(Part):
    """`alone`: of the run that the report is about. `lifetime`: of all that these patients were charged, the run
    included; for a plan, with all that open runs may still spend."""

    privacy_unit: Unit
    privacy_unit_description: str
    alone: Loss | None
    lifetime: Loss


class Actor(Part):
    """Somebody, and what they get to see."""

    name: str
    sees: str


class TrustModel(Part):
    """Who has to be trusted with what."""

    model_name: str
    actors: tuple[Actor, ...]
    release_type: str
    data_source_type: str
    access_type: str


class CheckedEpsilon(Part):
    """The same epsilon by other accountants; it has to be at most `rdp`, and between the PRV bounds where Opacus is."""

    what: Literal["alone", "lifetime"]
    delta: Delta
    pld: Epsilon | None
    rdp: Epsilon | None
    prv_lower: float | None
    prv_upper: float | None
    failures: tuple[str, ...]


class Lifetime(Part):
    """Epsilons at `delta`; they do not add up. `before`: without the run that the report is about (of the whole life:
    nothing). `after`: with it. `committed`: with all that open runs may still spend. `remaining`: of the budget,
    `committed` taken away; negative if it is overdrawn. `fits`: None without a budget."""

    delta: Delta
    budget: Epsilon | None
    before: Epsilon | None
    after: Epsilon | None
    committed: Epsilon | None
    remaining: float | None
    fits: bool | None


class RunLine(Part):
    """A run on these patients, whoever started it: tuning counts. `epsilon`: alone; None if there is no bound."""

    run: RunName
    dataset: Name
    spec_hash: Digest
    mode: str
    unit: Unit
    state: RunState
    num_releases: Count
    charged: Events
    may_still_spend: Events
    epsilon: Epsilon | None
    spec: SpecFacts | None


class CurvePoint(Part):
    """Epsilon after so many releases, in the order in which they were charged."""

    num_releases: Count
    epsilon: Epsilon


class Accounting(Part):
    """How the figures come about: every one is computed from `releases`, `lost_entries` and `may_still_spend`."""

    accountant: str
    accountant_version: str
    composition: str
    assumptions: tuple[Assumption, ...]
    cross_check: tuple[CheckedEpsilon, ...]
    lifetime: Lifetime
    limits: tuple[Limit, ...]
    runs: tuple[RunLine, ...]
    releases: tuple[Release, ...]
    lost_entries: Events
    epsilon_over_releases: tuple[CurvePoint, ...]


class Implementation(Part):
    """What computes it."""

    software: str
    software_version: str
    mechanisms: str
    randomness: str


class Empirical(Part):
    """What was found by attacking it: at a silo, its own training. `audit`: by the newest audit of each plan."""

    audit: Literal["none", "passed", "failed"] = "none"
    note: str
    audits: tuple[AuditFacts, ...] = ()


class Governance(Part):
    """Where it stands in the silo's ledger, what the spec's [governance] says (label, text), and what people have to
    add by hand."""

    ledger: BookFacts | None
    said: tuple[tuple[str, str], ...]
    to_be_filled_in: tuple[str, ...]


class PrivacyReport(Part):
    """The whole report. Every figure is an upper bound, rounded up."""

    version: Literal[1] = 1
    kind: Kind
    made_at: AwareDatetime
    silo: SiloName
    datasets: tuple[DatasetFacts, ...]
    summary: tuple[str, ...]
    product: Product
    dp_flavor: Flavor
    privacy_loss: PrivacyLoss
    model: TrustModel
    accounting: Accounting
    implementation: Implementation
    empirical: Empirical
    governance: Governance


class ReportSignature(Part):
    """By the silo's enrolled key. `fingerprint`: of `key`, to be compared with what the silo reads out by phone."""

    key: Annotated[str, Field(max_length=1000)]
    fingerprint: Digest
    signature: Signature


class ReportFile(Part):
    """A report as it is kept: with the silo's signature, or with why there is none."""

    report: PrivacyReport
    signature: ReportSignature | None
    unsigned_because: str = ""
