"""Privacy ledgers: the last signed statement of each population of each silo."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, DateTime, Float, ForeignKey, String, Text

revision = "0004"
down_revision = "0003"

TIME = DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "ledger_statements",
        Column("silo_name", String(63), ForeignKey("silos.name"), primary_key=True),
        Column("population", String(32), primary_key=True),
        Column("run_id", String(128), nullable=False),
        Column("dataset", Text, nullable=False),
        Column("era", BigInteger, nullable=False),
        Column("seq", BigInteger, nullable=False),
        Column("head", String(64), nullable=False),
        Column("at", TIME, nullable=False),
        Column("unit", String(64), nullable=False),
        Column("epsilon", Float(53)),
        Column("delta", Float(53), nullable=False),
        Column("budget", Float(53)),
        Column("statement", Text, nullable=False),
        Column("signature", Text, nullable=False),
        Column("fingerprint", String(64), nullable=False),
        Column("countersigned_seq", BigInteger),
        Column("countersigned_head", String(64)),
        Column("countersignature", Text),
    )
