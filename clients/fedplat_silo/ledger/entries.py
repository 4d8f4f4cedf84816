"""The entries of the book: what each kind says, and the chain of hashes that holds them together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedplat.canonical import canonical_json, sha256_hex
from fedplat.ledger import (
    Attempt,
    Delta,
    Digest,
    Epsilon,
    Events,
    Name,
    Population,
    Round,
    RunId,
    Seq,
    Signature,
    SignedStatement,
    SiloName,
    Unit,
)

NO_HASH = "0" * 64
Count = Annotated[int, Field(ge=0)]
Mode = Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
Column = Annotated[str, Field(min_length=1, max_length=200)]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Genesis(_Fields):
    """The first entry. `key_check` tells whether the key of the patients' hashes is still the same."""

    kind: Literal["genesis"] = "genesis"
    silo: SiloName
    key_check: Digest


class Registered(_Fields):
    """A dataset as it is from now on. `content`: digest of all its keyed hashes; `change`: of those that came or went.

    `merged`: populations that turn out to be one with `population`, because they share patients.
    """

    kind: Literal["registered"] = "registered"
    dataset: Name
    population: Population
    merged: tuple[Population, ...] = ()
    patient_column: Column | None
    num_records: Count
    num_patients: Count | None
    content: Digest
    change: Digest


class ExclusionUsed(_Fields):
    """These patients' records take no part from now on. `num_found`: how many of those listed the dataset has."""

    kind: Literal["exclusion"] = "exclusion"
    dataset: Name
    column: Column | None
    num_listed: Count
    num_found: Count | None
    change: Digest


class BudgetSet(_Fields):
    """What a population may be charged in all, for life."""

    kind: Literal["budget"] = "budget"
    dataset: Name
    population: Population
    epsilon: Epsilon
    delta: Delta
    unit: Unit


class Reserved(_Fields):
    """A run may spend `events`. `version`, `exclusion`: the entries that say whose records take part."""

    kind: Literal["reserve"] = "reserve"
    run: RunId
    spec_hash: Digest
    dataset: Name
    population: Population
    version: Seq
    exclusion: Seq | None
    mode: Mode
    unit: Unit
    delta: Delta
    events: Events


class Spent(_Fields):
    """A release, noted before it leaves."""

    kind: Literal["spend"] = "spend"
    run: RunId
    round: Round
    attempt: Attempt
    version: Seq
    exclusion: Seq | None
    events: Events


class Closed(_Fields):
    """The run releases nothing more; what it did not spend is free again."""

    kind: Literal["close"] = "close"
    run: RunId


class Countersigned(_Fields):
    """The server has signed that it knows the book up to this head."""

    kind: Literal["countersigned"] = "countersigned"
    head_seq: Seq
    head: Digest
    signature: Signature


class Behind(_Fields):
    """A head of this book is known that the book does not have: by the server, or by the silo's own note.

    `copies`: what the server knows of the entries that are missing, signed by this silo.
    """

    kind: Literal["behind"] = "behind"
    source: Literal["server", "note"]
    told_seq: Seq
    told_head: Digest
    copies: Annotated[tuple[SignedStatement, ...], Field(max_length=1000)] = ()


class KeptBudget(_Fields):
    """A budget that a statement tells of."""

    epsilon: Epsilon
    delta: Delta
    unit: Unit


class Charge(_Fields):
    """What a population is charged for entries that were lost, and the budget that it had then: it is kept as well."""

    population: Population
    dataset: Name
    events: Events
    budget: KeptBudget | None = None


class Reconciled(_Fields):
    """What was lost is charged, and the runs that were open are closed. `era`: later than all that was lost."""

    kind: Literal["reconciled"] = "reconciled"
    era: Count
    heads: tuple[Digest, ...]
    charges: tuple[Charge, ...]
    closed: tuple[RunId, ...]


Fields = (
    Genesis | Registered | ExclusionUsed | BudgetSet | Reserved | Spent | Closed | Countersigned | Behind | Reconciled
)
_ADAPTER: TypeAdapter[Fields] = TypeAdapter(Annotated[Fields, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the book. `text`: the fields as canonical JSON, over which the hash goes."""

    seq: int
    at: str
    kind: str
    text: str
    prev_hash: str
    hash: str

    @property
    def expected_hash(self) -> str:
        """What `hash` has to be."""
        return sha256_hex(canonical_json([self.seq, self.at, self.kind, self.text, self.prev_hash]))

    @property
    def time(self) -> datetime:
        """When it was made, UTC."""
        return datetime.fromisoformat(self.at)

    def fields(self) -> Fields:
        """What it says. Raises ValueError if that is not understood."""
        try:
            found = _ADAPTER.validate_json(self.text)
        except ValidationError as error:
            raise ValueError(f"entry {self.seq} has fields that are not understood") from error
        if found.kind != self.kind:
            raise ValueError(f"entry {self.seq} is of another kind than it says")
        return found


def next_entry(last: Entry | None, fields: Fields) -> Entry:
    """The entry that comes after `last`."""
    draft = Entry(
        seq=last.seq + 1 if last else 1,
        at=datetime.now(UTC).isoformat(timespec="microseconds"),
        kind=fields.kind,
        text=canonical_json(fields.model_dump(mode="json")),
        prev_hash=last.hash if last else NO_HASH,
        hash="",
    )
    return Entry(draft.seq, draft.at, draft.kind, draft.text, draft.prev_hash, draft.expected_hash)
