"""Whether the book is as it was written, from its first entry on."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.errors import IdentityError
from fedplat.home import SiloHome
from fedplat.ledger import verify_countersignature
from fedplat_silo.ledger import rolls
from fedplat_silo.ledger.entries import Countersigned, Entry, ExclusionUsed, Registered
from fedplat_silo.ledger.errors import BookDamaged
from fedplat_silo.ledger.journal import Pen, lost, missed
from fedplat_silo.ledger.opening import existing, key_file
from fedplat_silo.ledger.patients import PatientKey
from fedplat_silo.ledger.state import State
from fedplat_silo.ledger.storage import check_schema, entries_after

_HINT = "Find out who can write to the silo's home, restore it from a backup, then: fedplat client budget reconcile"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A book that is whole. `countersigned`: the last entry that the server has signed; None if there is none."""

    num_entries: int
    head: str
    countersigned: int | None


def verify_book(home: SiloHome, server: ec.EllipticCurvePublicKey | None = None) -> Verdict:
    """Walks the whole book; with the server's public key its countersignatures, too.

    Raises NotFoundError, BookDamaged, or BookBehind if the end is missing; they say which entry.
    """
    storage = existing(home)
    key, note = PatientKey.load(key_file(home)), storage.note()
    with storage.reading() as connection:
        state = State()
        try:
            check_schema(connection)
            for entry in entries_after(connection, 0):
                state.apply(entry)
                _check_content(Pen(connection, state), entry, home.name, server)
            _check_beginning(state, key, home.name)
        except (ValueError, TypeError, IdentityError) as error:
            raise BookDamaged(f"the privacy ledger {storage.path} was changed: {error}", hint=_HINT) from error
    told = missed(state, note) or next(iter(state.behind), None)
    if told is not None:
        raise lost(told, state)
    signed = state.countersigned.head_seq if state.countersigned else None
    return Verdict(len(state.hashes), state.hashes[-1], signed)


def _check_content(pen: Pen, entry: Entry, silo: str, server: ec.EllipticCurvePublicKey | None) -> None:
    match entry.fields():
        case Registered(change=change) | ExclusionUsed(change=change):
            if rolls.digest_of(pen.connection, entry.seq) != change:
                raise ValueError(f"the patients of entry {entry.seq} are not those that were written")
        case Countersigned() as signed:
            if not pen.state.has(signed.head_seq, signed.head):
                raise ValueError(f"entry {entry.seq} is the server's signature for another book")
            if server is not None:
                verify_countersignature(server, silo, signed.head_seq, signed.head, signed.signature)
        case _:
            pass


def _check_beginning(state: State, key: PatientKey, silo: str) -> None:
    if state.genesis is None:
        raise ValueError("entry 1 is missing")
    if state.genesis.silo != silo:
        raise ValueError(f"it is the book of silo {state.genesis.silo}")
    if state.genesis.key_check != key.check:
        raise ValueError("it was written with another key (ledger.key) than the one that is here")
