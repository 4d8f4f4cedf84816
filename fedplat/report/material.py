"""What a report is made from: facts of one population at one silo, wherever they are kept."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, model_validator

from fedplat.ledger import Attempt, Delta, Digest, Epsilon, Events, Name, Round, SiloName, Unit
from fedplat.report.base import Count, Part, Share
from fedplat.spec.governance import GovernanceSection
from fedplat.spec.model import RunSpec
from fedplat.spec.privacy import PrivateMetrics, expected_batch_size

RunName = Annotated[str, Field(min_length=1, max_length=63)]


class RunState(StrEnum):
    """`planned`: a spec that was not submitted, or not accepted, yet."""

    PLANNED = "planned"
    OPEN = "open"
    CLOSED = "closed"


class SpecFacts(Part):
    """What a run's spec says beyond the charge."""

    study: Name
    task: Name
    num_rounds: Count
    clip_norm: float
    expected_batch_size: Count
    metrics: str
    secure_aggregation: bool
    governance: GovernanceSection = GovernanceSection()

    @property
    def counts_metrics(self) -> bool:
        """Whether no figure of merit leaves that no epsilon counts."""
        return self.metrics != PrivateMetrics.UNPROTECTED


class RunFacts(Part):
    """`rest`: what it may still spend, or all of a plan. `has_privacy`: False if it released without noise."""

    run: RunName
    dataset: Name
    spec_hash: Digest
    mode: str
    unit: Unit
    state: RunState
    has_privacy: bool
    rest: Events = ()
    spec: SpecFacts | None = None


class Release(Part):
    """Something that left the silo, and what it was charged; no events if it had no noise."""

    at: AwareDatetime
    run: RunName
    round: Round
    attempt: Attempt
    events: Events


class DatasetFacts(Part):
    """`num_patients`: None where the data do not say whose a record is."""

    name: Name
    num_records: Count
    num_patients: Count | None
    num_excluded: Count | None = None


class Limit(Part):
    """A budget: epsilon at delta, for life."""

    epsilon: Epsilon
    delta: Delta
    unit: Unit


class BookFacts(Part):
    """The ledger at its head. `countersigned`: up to which entry the server has signed that it knows the book.

    `problem`: why the book cannot be relied on; empty if it is whole, from its first entry to its last.
    """

    seq: Count
    head: Digest
    countersigned: Count | None
    problem: str = ""


class AuditFacts(Part):
    """One attack, by units who do not exist, on `num_steps` of the `num_planned_steps` of a plan.

    `claimed_epsilon`: what so many steps may cost at most, at `delta`. `one_run_epsilon`, `gaussian_epsilon`: what they
    cost at least, as the attack found; with `confidence` neither is above the truth. `noticed_noise_factor`: noise that
    much too small would have been noticed nine times in ten; None if any would have been missed. `passed`: it found no
    more than is claimed.
    """

    made_at: AwareDatetime
    dataset: Name
    spec_hash: Digest
    software_version: str
    code_sha256: Digest
    torch_version: str
    engine: str
    method: str
    unit: Unit
    sampling_rate: float
    noise_multiplier: float
    num_steps: Count
    num_planned_steps: Count
    num_canaries: Count
    num_included: Count
    delta: Delta
    confidence: Share
    claimed_epsilon: Epsilon
    one_run_epsilon: Epsilon
    gaussian_epsilon: Epsilon
    noticed_noise_factor: float | None
    passed: bool

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.passed != (self.found_epsilon <= self.claimed_epsilon):
            raise ValueError("passed does not follow from the figures")
        return self

    @property
    def found_epsilon(self) -> float:
        """The larger lower bound."""
        return max(self.one_run_epsilon, self.gaussian_epsilon)


class Material(Part):
    """One population. `subject`: the run that the report is about; None for the patients' whole life.

    `lost`: what was charged in place of entries that an old copy of the book lacked. `audits`: attacks by the silo on
    its own training, on these datasets. `num_units`: the patients or
    records that a planned run samples from, as it was declared.
    """

    made_at: AwareDatetime
    silo: SiloName
    book: BookFacts | None
    datasets: tuple[DatasetFacts, ...]
    unit: Unit
    limits: tuple[Limit, ...]
    delta: Delta
    runs: tuple[RunFacts, ...]
    releases: tuple[Release, ...]
    lost: Events = ()
    audits: tuple[AuditFacts, ...] = ()
    subject: RunName | None = None
    num_units: Count | None = None

    @property
    def the_run(self) -> RunFacts | None:
        """The run that the report is about."""
        return next((run for run in self.runs if run.run == self.subject), None)

    @property
    def is_plan(self) -> bool:
        """Whether it was made before the run."""
        return self.the_run is not None and self.the_run.state is RunState.PLANNED


def spec_facts(spec: RunSpec) -> SpecFacts:
    """What a report says of a spec."""
    return SpecFacts(
        study=spec.name,
        task=spec.task.name,
        num_rounds=spec.rounds.count,
        clip_norm=spec.privacy.clip_norm,
        expected_batch_size=expected_batch_size(spec),
        metrics=spec.privacy.metrics or PrivateMetrics.UNPROTECTED,
        secure_aggregation=spec.secure_aggregation.enabled,
        governance=spec.governance,
    )
