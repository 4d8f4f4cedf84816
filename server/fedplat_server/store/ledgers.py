"""What silos have signed of their ledgers: each population's last statement, and one of each release."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import select

from fedplat.ledger import Countersignature, Deed, SignedStatement, Statement
from fedplat_server.store.records import LedgerRelease, LedgerStatement
from fedplat_server.store.rows import every, first, upsert
from fedplat_server.store.session import Database
from fedplat_server.store.tables import ledger_history, ledger_statements


class LedgerStatements:
    """What the silos' privacy ledgers have told. Of two statements the one with the higher (era, seq) is kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(
        self, told: Statement, signed: SignedStatement, *, fingerprint: str, countersigned: Countersignature | None
    ) -> None:
        """Keep a statement that was verified, unless a later one is there; once is as good as twice."""
        key = {"silo_name": told.silo, "population": told.population}
        here = [ledger_statements.c[name] == value for name, value in key.items()]
        with self._database.write() as connection:
            old = first(connection, LedgerStatement, select(ledger_statements).where(*here))
            if told.deed is Deed.SPENT:
                upsert(
                    connection,
                    ledger_history,
                    {**key, "era": told.era, "seq": told.seq},
                    _release(told, signed, fingerprint),
                )
            if old is None or (old.era, old.seq) <= (told.era, told.seq):
                upsert(connection, ledger_statements, key, _values(told, signed, fingerprint, countersigned))

    def releases(self, silos: Collection[str]) -> Sequence[LedgerRelease]:
        """What some silos have signed each time something left, oldest first."""
        table = ledger_history.c
        query = select(ledger_history).where(table.silo_name.in_(silos))
        with self._database.read() as connection:
            return every(connection, LedgerRelease, query.order_by(table.silo_name, table.era, table.seq))

    def of(self, silos: Collection[str]) -> Sequence[LedgerStatement]:
        """The last statements of some silos, of each the latest first."""
        table = ledger_statements.c
        query = select(ledger_statements).where(table.silo_name.in_(silos))
        with self._database.read() as connection:
            return every(
                connection, LedgerStatement, query.order_by(table.silo_name, table.era.desc(), table.seq.desc())
            )


def _release(told: Statement, signed: SignedStatement, fingerprint: str) -> Mapping[str, object]:
    written = {"statement": signed.statement, "signature": signed.signature, "fingerprint": fingerprint}
    return {"run_id": told.run, **written}


def _values(
    told: Statement, signed: SignedStatement, fingerprint: str, countersigned: Countersignature | None
) -> Mapping[str, object]:
    values: dict[str, object] = {
        "run_id": told.run,
        "dataset": told.dataset,
        "era": told.era,
        "seq": told.seq,
        "head": told.head,
        "at": told.at,
        "unit": told.unit,
        "epsilon": told.epsilon,
        "delta": told.delta,
        "budget": told.budget,
        "statement": signed.statement,
        "signature": signed.signature,
        "fingerprint": fingerprint,
    }
    if countersigned is not None:
        values |= {
            "countersigned_seq": countersigned.seq,
            "countersigned_head": countersigned.head,
            "countersignature": countersigned.signature,
        }
    return values
