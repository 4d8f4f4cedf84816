"""Every table of the store, as docs/schema.md tells it. A change here needs a migration."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

from fedplat_server.store.columns import Finite, Json, Uint64, UtcDateTime
from fedplat_server.transitions import RoundState, RunState, SiloRoundState


class SiloState(StrEnum):
    """Whether a silo's key is accepted."""

    ENROLLED = "enrolled"
    REVOKED = "revoked"


class InviteKind(StrEnum):
    """What an invite allows: a new silo, or a new key for an enrolled one."""

    ENROL = "enrol"
    ROTATE = "rotate"


class RunSiloState(StrEnum):
    """What a silo said to a run's invitation, and whether it is there."""

    INVITED = "invited"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    AWAY = "away"
    LEFT = "left"


class Split(StrEnum):
    """Which examples an evaluation was measured on."""

    TEST = "test"
    TRAIN = "train"


NAME = String(63)
RUN = String(128)
HASH = String(64)
CODE = String(64)

metadata = MetaData()


def _word(words: type[StrEnum]) -> Enum:
    return Enum(words, native_enum=False, length=16, values_callable=lambda kind: [word.value for word in kind])


silos = Table(
    "silos",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("public_key_pem", Text, nullable=False),
    Column("fingerprint", HASH, nullable=False, unique=True),
    Column("node_id", Uint64, nullable=False, unique=True),
    Column("state", _word(SiloState), nullable=False),
    Column("enrolled_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("last_seen_at", UtcDateTime),
    Column("rotated_at", UtcDateTime),
)

invites = Table(
    "invites",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("silo_name", NAME, nullable=False, index=True),
    Column("secret_hash", HASH, nullable=False, unique=True),
    Column("kind", _word(InviteKind), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("used_at", UtcDateTime),
    Column("cancelled_at", UtcDateTime),
)

runs = Table(
    "runs",
    metadata,
    Column("id", RUN, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", Json, nullable=False),
    Column("spec_hash", HASH, nullable=False),
    Column("state", _word(RunState), nullable=False),
    Column("reason", Text),
    Column("reason_code", CODE),
    Column("parent_id", ForeignKey("runs.id")),
    Column("flower_run_id", Uint64),
    Column("rounds_planned", Integer, nullable=False),
    Column("rounds_committed", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("layout", Json),
    Column("weights_path", Text),
    Column("weights_sha256", HASH),
)

run_silos = Table(
    "run_silos",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("silo_name", ForeignKey("silos.name"), primary_key=True),
    Column("state", _word(RunSiloState), nullable=False),
    Column("reason_code", CODE),
    Column("reason", Json),
    Column("num_examples", BigInteger),
    Column("info", Json, nullable=False),
    Column("joined_at", UtcDateTime),
    Column("updated_at", UtcDateTime, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("step", BigInteger, nullable=False),
    Column("state", _word(RoundState), nullable=False),
    Column("cohort", Json, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("seconds", Finite),
    Column("update_norm", Finite),
    Column("weights_sha256", HASH),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("round_number", Integer, primary_key=True, autoincrement=False),
    Column("split", _word(Split), primary_key=True),
    Column("num_silos", Integer, nullable=False),
    Column("silos", Json, nullable=False),
    Column("num_examples", BigInteger),
    Column("loss", Finite),
    Column("metrics", Json, nullable=False),
)

silo_rounds = Table(
    "silo_rounds",
    metadata,
    Column("run_id", RUN, primary_key=True),
    Column("round_number", Integer, primary_key=True, autoincrement=False),
    Column("silo_name", ForeignKey("silos.name"), primary_key=True),
    Column("state", _word(SiloRoundState), nullable=False),
    Column("reason_code", CODE),
    Column("reason", Json),
    Column("num_examples", BigInteger),
    Column("metrics", Json),
    Column("seconds_waiting", Finite),
    Column("seconds_training", Finite),
    Column("seconds_evaluating", Finite),
    Column("seconds_communicating", Finite),
    Column("samples_per_second", Finite),
    Column("busy_share", Finite),
    Column("bytes_down", BigInteger),
    Column("bytes_up", BigInteger),
    Column("restarts", Integer, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
)

secure_epochs = Table(
    "secure_epochs",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("first_step", BigInteger, nullable=False),
    Column("roster", Json, nullable=False),
    Column("max_weight", Finite, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

secure_steps = Table(
    "secure_steps",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False),
    Column("round_number", Integer, nullable=False),
    Column("closing", Boolean, nullable=False),
    Column("silos", Json, nullable=False),
    Column("threshold", Integer, nullable=False),
    Column("min_cohort", Integer, nullable=False),
    Column("colluders_tolerated", Integer, nullable=False),
    Column("cohort", Json),
    Column("dropped", Json),
    Column("num_confirmed", Integer),
    Column("num_clipped", BigInteger),
    Column("seconds_masking", Finite),
    Column("seconds_agreeing", Finite),
    Column("seconds_unmasking", Finite),
    Column("opened_at", UtcDateTime, nullable=False),
)

ledger_statements = Table(
    "ledger_statements",
    metadata,
    Column("silo_name", ForeignKey("silos.name"), primary_key=True),
    Column("population", String(32), primary_key=True),
    Column("run_id", RUN, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("era", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("head", HASH, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("unit", CODE, nullable=False),
    Column("epsilon", Finite),
    Column("delta", Finite, nullable=False),
    Column("budget", Finite),
    Column("statement", Text, nullable=False),
    Column("signature", Text, nullable=False),
    Column("fingerprint", HASH, nullable=False),
    Column("countersigned_seq", BigInteger),
    Column("countersigned_head", HASH),
    Column("countersignature", Text),
)

ledger_history = Table(
    "ledger_history",
    metadata,
    Column("silo_name", ForeignKey("silos.name"), primary_key=True),
    Column("population", String(32), primary_key=True),
    Column("era", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("run_id", RUN, nullable=False),
    Column("statement", Text, nullable=False),
    Column("signature", Text, nullable=False),
    Column("fingerprint", HASH, nullable=False),
)

# No foreign keys: what was done stays written when the thing that it was done to is gone.
events = Table(
    "events",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("kind", CODE, nullable=False),
    Column("run_id", RUN),
    Column("silo_name", NAME),
    Column("detail", Json, nullable=False),
    Column("prev_hash", HASH, nullable=False),
    Column("hash", HASH, nullable=False),
    Index("ix_events_run_id", "run_id", "seq"),
)
