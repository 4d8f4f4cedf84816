"""Privacy ledgers: what silos signed each time something left, from which reports tell what a run alone was charged."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, String, Text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "ledger_history",
        Column("silo_name", String(63), ForeignKey("silos.name"), primary_key=True),
        Column("population", String(32), primary_key=True),
        Column("era", BigInteger, primary_key=True, autoincrement=False),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("run_id", String(128), nullable=False),
        Column("statement", Text, nullable=False),
        Column("signature", Text, nullable=False),
        Column("fingerprint", String(64), nullable=False),
    )
