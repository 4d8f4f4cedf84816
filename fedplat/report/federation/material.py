"""What a report on the federation is made from: what silos have signed, and what the server has written down."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from fedplat.ledger import Digest, SignedStatement, SiloName, Statement
from fedplat.report.base import Count, Part
from fedplat.report.material import SpecFacts

Line = Annotated[str, Field(max_length=500)]


class Testimony(Part):
    """A statement as a silo signed it. `key`: that it is enrolled with now; `fingerprint`: of the key that signed."""

    told: Statement
    signed: SignedStatement
    key: Annotated[str, Field(max_length=1000)]
    fingerprint: Digest
    is_by_key: bool
    """False: an earlier key of that silo has signed; the server checked it when it came, and has it no more."""
    countersigned: Count | None


class SiloFacts(Part):
    """A population at a silo. `latest`: None if the silo has signed nothing about it.

    `releases`: what it has signed each time something left, oldest first. `rounds`: of the run, in which it is in
    the sum. `bare_runs`: runs without differential privacy that used the dataset, as the server's own rows say.
    """

    silo: SiloName
    dataset: str
    latest: Testimony | None
    releases: tuple[SignedStatement, ...] = ()
    rounds: tuple[Count, ...] = ()
    bare_runs: tuple[str, ...] = ()


class MaskingFacts(Part):
    """How sums were opened. `colluders_tolerated`: in the worst step, so many may side with the server and learn
    nothing more; `num_confirmed`: the fewest other silos that one had confirmed by phone, None if nobody said."""

    num_sums: Count
    smallest_cohort: Count
    colluders_tolerated: Count
    num_confirmed: Count | None


class FederatedRun(Part):
    """A run as the server knows it."""

    id: str
    spec_hash: Digest
    mode: str
    delta: float | None
    spec: SpecFacts
    state: str
    reason: Line
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    num_rounds_committed: Count
    num_silos_asked: Count
    model_hash: Digest | None
    masking: MaskingFacts | None

    @property
    def is_private(self) -> bool:
        """Whether the run has differential privacy."""
        return self.mode != "none"


class FederationMaterial(Part):
    """`subject`: what was asked for, in words. `overlaps`: silos that may treat the same patients, as specs say."""

    made_at: AwareDatetime
    server: str
    subject: str
    run: FederatedRun | None
    silos: tuple[SiloFacts, ...]
    overlaps: tuple[tuple[SiloName, ...], ...] = ()
