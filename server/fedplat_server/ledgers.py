"""The silos' privacy ledgers, as far as the server knows them: copies of what they have signed, and its own signature.

A copy is what a book that was restored from an old snapshot is found out by, and made whole again.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedplat.home import ServerHome
from fedplat.identity import ensure_signing_key, fingerprint
from fedplat.ledger import (
    Countersignature,
    Deed,
    LedgerCopy,
    LedgerHead,
    SignedStatement,
    countersign,
    verify_statement,
)
from fedplat_server.registry import Member
from fedplat_server.store import LedgerStatement, Store


class Ledgers:
    """Thread-safe."""

    def __init__(self, store: Store, home: ServerHome) -> None:
        self._store = store
        self._home = home

    def hear(self, member: Member, signed: SignedStatement) -> None:
        """Keeps what a silo has signed, and signs the head of a reservation. Raises IdentityError, WireError."""
        told = verify_statement(signed, member.public_key, member.name)
        mine = None
        if told.deed is Deed.RESERVED:
            signature = countersign(ensure_signing_key(self._home), member.name, told.seq, told.head)
            mine = Countersignature(seq=told.seq, head=told.head, signature=signature)
        self._store.ledgers.keep(told, signed, fingerprint=fingerprint(member.public_key), countersigned=mine)

    def heads(self, members: Sequence[Member]) -> dict[str, LedgerHead]:
        """By silo: what goes into a question to all of them."""
        rows = self._rows(members)
        return {silo: _head(kept) for silo, kept in rows.items()}

    def copy_for(self, member: Member) -> LedgerCopy | None:
        """What goes to that silo alone when it is asked to join; None if nothing is known of its ledger."""
        kept = self._rows([member]).get(member.name)
        if kept is None:
            return None
        copies = tuple(SignedStatement(statement=row.statement, signature=row.signature) for row in kept)
        head = _head(kept)
        return LedgerCopy(seq=head.seq, head=head.head, countersigned=head.countersigned, copies=copies)

    def _rows(self, members: Sequence[Member]) -> dict[str, list[LedgerStatement]]:
        """By silo, the latest first. What a silo's former key has signed it could not verify any more."""
        keys = {member.name: fingerprint(member.public_key) for member in members}
        found: dict[str, list[LedgerStatement]] = {}
        for row in self._store.ledgers.of(keys):
            if row.fingerprint == keys[row.silo_name]:
                found.setdefault(row.silo_name, []).append(row)
        return found


def _head(rows: Sequence[LedgerStatement]) -> LedgerHead:
    last = rows[0]
    signed = max(rows, key=lambda row: (row.era, row.countersigned_seq or 0))
    mine = None
    if signed.countersigned_seq and signed.countersigned_head and signed.countersignature:
        mine = Countersignature(
            seq=signed.countersigned_seq, head=signed.countersigned_head, signature=signed.countersignature
        )
    return LedgerHead(seq=last.seq, head=last.head, countersigned=mine)
