"""Secure aggregation: the keys of each epoch of a run, and what became of each masked step."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Float, ForeignKey, Integer, String, Text

revision = "0003"
down_revision = "0002"

TIME = DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "secure_epochs",
        Column("run_id", String(128), ForeignKey("runs.id"), primary_key=True),
        Column("epoch", Integer, primary_key=True, autoincrement=False),
        Column("first_step", BigInteger, nullable=False),
        Column("roster", Text, nullable=False),
        Column("max_weight", Float(53), nullable=False),
        Column("created_at", TIME, nullable=False),
    )
    op.create_table(
        "secure_steps",
        Column("run_id", String(128), ForeignKey("runs.id"), primary_key=True),
        Column("step", BigInteger, primary_key=True, autoincrement=False),
        Column("epoch", Integer, nullable=False),
        Column("round_number", Integer, nullable=False),
        Column("closing", Boolean, nullable=False),
        Column("silos", Text, nullable=False),
        Column("threshold", Integer, nullable=False),
        Column("min_cohort", Integer, nullable=False),
        Column("colluders_tolerated", Integer, nullable=False),
        Column("cohort", Text),
        Column("dropped", Text),
        Column("num_confirmed", Integer),
        Column("num_clipped", BigInteger),
        Column("seconds_masking", Float(53)),
        Column("seconds_agreeing", Float(53)),
        Column("seconds_unmasking", Float(53)),
        Column("opened_at", TIME, nullable=False),
    )
