"""The tables of the first version. A migration is history: it stays as it is and imports no live table."""

from __future__ import annotations

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
)

revision = "0001"
down_revision = None

TIME = DateTime(timezone=True)


def upgrade() -> None:
    _silos()
    _runs()
    _rounds()
    _silo_rounds()
    _events()


def _silos() -> None:
    op.create_table(
        "silos",
        Column("name", String(63), primary_key=True),
        Column("public_key_pem", Text, nullable=False),
        Column("fingerprint", String(64), nullable=False, unique=True),
        Column("node_id", String(20), nullable=False, unique=True),
        Column("state", String(16), nullable=False),
        Column("enrolled_at", TIME, nullable=False),
        Column("revoked_at", TIME),
        Column("last_seen_at", TIME),
        Column("rotated_at", TIME),
    )
    op.create_table(
        "invites",
        Column("id", Integer, primary_key=True),
        Column("silo_name", String(63), nullable=False, index=True),
        Column("secret_hash", String(64), nullable=False, unique=True),
        Column("kind", String(16), nullable=False),
        Column("created_at", TIME, nullable=False),
        Column("expires_at", TIME, nullable=False),
        Column("used_at", TIME),
        Column("cancelled_at", TIME),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        Column("id", String(128), primary_key=True),
        Column("name", Text, nullable=False),
        Column("spec", Text, nullable=False),
        Column("spec_hash", String(64), nullable=False),
        Column("state", String(16), nullable=False),
        Column("reason", Text),
        Column("reason_code", String(64)),
        Column("parent_id", String(128), ForeignKey("runs.id")),
        Column("flower_run_id", String(20)),
        Column("rounds_planned", Integer, nullable=False),
        Column("rounds_committed", Integer, nullable=False),
        Column("created_at", TIME, nullable=False),
        Column("started_at", TIME),
        Column("finished_at", TIME),
        Column("layout", Text),
        Column("weights_path", Text),
        Column("weights_sha256", String(64)),
    )
    op.create_table(
        "run_silos",
        Column("run_id", String(128), ForeignKey("runs.id"), primary_key=True),
        Column("silo_name", String(63), ForeignKey("silos.name"), primary_key=True),
        Column("state", String(16), nullable=False),
        Column("reason_code", String(64)),
        Column("reason", Text),
        Column("num_examples", BigInteger),
        Column("info", Text, nullable=False),
        Column("joined_at", TIME),
        Column("updated_at", TIME, nullable=False),
    )


def _rounds() -> None:
    op.create_table(
        "rounds",
        Column("run_id", String(128), ForeignKey("runs.id"), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("step", BigInteger, nullable=False),
        Column("state", String(16), nullable=False),
        Column("cohort", Text, nullable=False),
        Column("started_at", TIME, nullable=False),
        Column("finished_at", TIME),
        Column("seconds", Float(53)),
        Column("update_norm", Float(53)),
        Column("weights_sha256", String(64)),
    )
    op.create_table(
        "evaluations",
        Column("run_id", String(128), ForeignKey("runs.id"), primary_key=True),
        Column("round_number", Integer, primary_key=True, autoincrement=False),
        Column("split", String(16), primary_key=True),
        Column("num_silos", Integer, nullable=False),
        Column("silos", Text, nullable=False),
        Column("num_examples", BigInteger),
        Column("loss", Float(53)),
        Column("metrics", Text, nullable=False),
    )


def _silo_rounds() -> None:
    op.create_table(
        "silo_rounds",
        Column("run_id", String(128), primary_key=True),
        Column("round_number", Integer, primary_key=True, autoincrement=False),
        Column("silo_name", String(63), ForeignKey("silos.name"), primary_key=True),
        Column("state", String(16), nullable=False),
        Column("reason_code", String(64)),
        Column("reason", Text),
        Column("num_examples", BigInteger),
        Column("metrics", Text),
        Column("seconds_waiting", Float(53)),
        Column("seconds_training", Float(53)),
        Column("seconds_evaluating", Float(53)),
        Column("seconds_communicating", Float(53)),
        Column("samples_per_second", Float(53)),
        Column("busy_share", Float(53)),
        Column("bytes_down", BigInteger),
        Column("bytes_up", BigInteger),
        Column("restarts", Integer, nullable=False),
        Column("started_at", TIME),
        Column("finished_at", TIME),
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
    )


def _events() -> None:
    op.create_table(
        "events",
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("at", TIME, nullable=False),
        Column("actor", Text, nullable=False),
        Column("kind", String(64), nullable=False),
        Column("run_id", String(128)),
        Column("silo_name", String(63)),
        Column("detail", Text, nullable=False),
        Column("prev_hash", String(64), nullable=False),
        Column("hash", String(64), nullable=False),
        Index("ix_events_run_id", "run_id", "seq"),
    )
