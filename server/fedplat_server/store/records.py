"""What the store answers with: frozen facts, each field named like its column. Times are aware and in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypedDict

from fedplat.canonical import canonical_json, sha256_hex
from fedplat_server.store.tables import InviteKind, RunSiloState, SiloState, Split
from fedplat_server.transitions import RoundState, RunState, SiloRoundState


@dataclass(frozen=True, kw_only=True)
class Silo:
    """An institution that has registered a key. `fingerprint` is that key's, in lower-case hexadecimal."""

    name: str
    public_key_pem: str
    fingerprint: str
    node_id: int
    state: SiloState
    enrolled_at: datetime
    revoked_at: datetime | None
    last_seen_at: datetime | None
    rotated_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Invite:
    """A one-time permission to register a key. The secret itself is nowhere on the server."""

    id: int
    silo_name: str
    secret_hash: str
    kind: InviteKind
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    cancelled_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training job. `reason` is why it is in its state, in words for people.

    `weights_path` and `weights_sha256` name the last committed weights, or the initial ones before round 1.
    """

    id: str
    name: str
    spec: dict[str, object]
    spec_hash: str
    state: RunState
    reason: str | None
    reason_code: str | None
    parent_id: str | None
    flower_run_id: int | None
    rounds_planned: int
    rounds_committed: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    layout: dict[str, object] | None
    weights_path: str | None
    weights_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class RunSilo:
    """One silo's part in a run: its answer to the invitation, and what it can do (`info`)."""

    run_id: str
    silo_name: str
    state: RunSiloState
    reason_code: str | None
    reason: dict[str, object] | None
    num_examples: int | None
    info: dict[str, object]
    joined_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round. `cohort` names the silos in the aggregate, in roster order: empty until it is fixed."""

    run_id: str
    number: int
    step: int
    state: RoundState
    cohort: list[str]
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    update_norm: float | None
    weights_sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How good the weights of a round are (0: the initial ones), over the examples of `silos`."""

    round_number: int
    split: Split
    silos: list[str]
    num_examples: int | None
    loss: float | None
    metrics: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SecureEpoch:
    """Who masks with whom, from `first_step` on. `max_weight`: the weight that counts fully."""

    run_id: str
    epoch: int
    first_step: int
    roster: dict[str, object]
    max_weight: float
    created_at: datetime


class SecureStepFields(TypedDict, total=False):
    """What is known of a masked step once its sum is opened."""

    num_confirmed: int
    num_clipped: int
    seconds_masking: float
    seconds_agreeing: float
    seconds_unmasking: float


@dataclass(frozen=True, kw_only=True)
class SecureStep:
    """A masked step. `closing`: it measured the weights of the round and trained nothing. `cohort`: [name, upload id]
    of each upload in the sum, fixed before any silo was asked to open it; `dropped`: who was asked and is not in it.
    `num_confirmed`: the fewest peers that a silo of the cohort had confirmed out of band."""

    run_id: str
    step: int
    epoch: int
    round_number: int
    closing: bool
    silos: list[str]
    threshold: int
    min_cohort: int
    colluders_tolerated: int
    cohort: list[list[str]] | None
    dropped: list[str] | None
    num_confirmed: int | None
    num_clipped: int | None
    seconds_masking: float | None
    seconds_agreeing: float | None
    seconds_unmasking: float | None
    opened_at: datetime


@dataclass(frozen=True, kw_only=True)
class LedgerStatement:
    """The last that a silo has said of one of its populations. `fingerprint`: of the key that signed it;
    `countersigned_*`: the last reservation, with the server's signature over its head."""

    silo_name: str
    population: str
    run_id: str
    dataset: str
    era: int
    seq: int
    head: str
    at: datetime
    unit: str
    epsilon: float | None
    delta: float
    budget: float | None
    statement: str
    signature: str
    fingerprint: str
    countersigned_seq: int | None
    countersigned_head: str | None
    countersignature: str | None


@dataclass(frozen=True, kw_only=True)
class LedgerRelease:
    """A release, as the silo has signed it. `fingerprint`: of the key that signed."""

    silo_name: str
    population: str
    era: int
    seq: int
    run_id: str
    statement: str
    signature: str
    fingerprint: str


class SiloRoundFields(TypedDict, total=False):
    """What can be noted about a silo's part in a round; a field that is not given stays as it is."""

    state: SiloRoundState
    reason_code: str | None
    reason: Mapping[str, object] | None
    num_examples: int | None
    metrics: Mapping[str, object] | None
    seconds_waiting: float
    seconds_training: float
    seconds_evaluating: float
    seconds_communicating: float
    samples_per_second: float
    busy_share: float
    bytes_down: int
    bytes_up: int
    restarts: int
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class SiloRound:
    """One silo's part in one round. `busy_share` is the part of its time in which it computed, 0 to 1."""

    run_id: str
    round_number: int
    silo_name: str
    state: SiloRoundState
    reason_code: str | None
    reason: dict[str, object] | None
    num_examples: int | None
    metrics: dict[str, object] | None
    seconds_waiting: float | None
    seconds_training: float | None
    seconds_evaluating: float | None
    seconds_communicating: float | None
    samples_per_second: float | None
    busy_share: float | None
    bytes_down: int | None
    bytes_up: int | None
    restarts: int
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that somebody did. `seq` counts from 1 without a gap."""

    seq: int
    at: datetime
    actor: str
    kind: str
    run_id: str | None
    silo_name: str | None
    detail: dict[str, object]
    prev_hash: str
    hash: str

    def expected_hash(self) -> str:
        """The hash that this event's own fields give."""
        at = self.at.astimezone(UTC).isoformat(timespec="microseconds")
        fields = [self.seq, at, self.actor, self.kind, self.run_id, self.silo_name, self.detail, self.prev_hash]
        return sha256_hex(canonical_json(fields))
