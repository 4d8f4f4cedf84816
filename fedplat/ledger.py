"""What a silo's privacy ledger says to the server: signed statements, and heads that the server countersigns.

A statement holds event parameters, counts of steps and figures; nothing in it depends on a patient. The server keeps
the last one of each population: it is the copy by which a book that was restored from an old snapshot is found out,
and made whole again.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedplat.canonical import canonical_json
from fedplat.errors import IdentityError, WireError
from fedplat.identity import Label, sign, verify
from fedplat.privacy.events import SampledGaussian, merged
from fedplat.spec.base import NAME, SILO_NAME

MAX_STATEMENT_CHARS = 200_000

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Population = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""A random name for a set of patients; it says nothing about them."""
Name = Annotated[str, StringConstraints(pattern=NAME)]
SiloName = Annotated[str, StringConstraints(pattern=SILO_NAME)]
RunId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Attempt = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
Round = Annotated[int, Field(ge=0)]
Seq = Annotated[int, Field(ge=1)]
Signature = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){8,72}$")]
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Unit = Literal["patient", "record"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Event(_Frozen):
    """A `SampledGaussian` as it is written down."""

    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    num_steps: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, event: SampledGaussian) -> Self:
        """The written form."""
        return cls(
            sampling_rate=event.sampling_rate, noise_multiplier=event.noise_multiplier, num_steps=event.num_steps
        )

    def fact(self) -> SampledGaussian:
        """What the accountant takes."""
        return SampledGaussian(
            sampling_rate=self.sampling_rate, noise_multiplier=self.noise_multiplier, num_steps=self.num_steps
        )


Events = Annotated[tuple[Event, ...], Field(max_length=1000)]


def to_wire(events: Iterable[SampledGaussian]) -> tuple[Event, ...]:
    """Merged, in one order: equal releases are written the same."""
    return tuple(map(Event.of, merged(events)))


def from_wire(events: Iterable[Event]) -> tuple[SampledGaussian, ...]:
    """Back from what `to_wire` wrote."""
    return tuple(event.fact() for event in events)


class Deed(StrEnum):
    """What an entry of the book did."""

    RESERVED = "reserved"
    SPENT = "spent"
    CLOSED = "closed"


class Statement(_Frozen):
    """What a silo's book says of a run, and where the population stands.

    `seq`, `head`: the last entry of the book. `era`: how often the book has been reconciled; of two statements the one
    with the higher (era, seq) is the later one, in whatever order they arrive.
    `events`: planned (reserved), released (spent) or none (closed). `spent`: all that the population was ever charged.
    `reserved`: what its open runs may still spend. `epsilon`: of `spent`, at `delta`; None if it has no bound.
    """

    version: Literal[1] = 1
    silo: SiloName
    era: Annotated[int, Field(ge=0)]
    seq: Seq
    head: Digest
    at: AwareDatetime
    deed: Deed
    run: RunId
    round: Round | None = None
    attempt: Attempt | None = None
    dataset: Name
    population: Population
    unit: Unit
    events: Events
    spent: Events
    reserved: Events
    epsilon: Epsilon | None
    delta: Delta
    budget: Epsilon | None
    """None: the dataset has no budget."""


class SignedStatement(_Frozen):
    """A statement as text, for a signature is over bytes, and the silo's signature in hexadecimal."""

    statement: Annotated[str, StringConstraints(max_length=MAX_STATEMENT_CHARS)]
    signature: Signature


class Countersignature(_Frozen):
    """The server's signature over the head that a reservation had."""

    seq: Seq
    head: Digest
    signature: Signature


class LedgerHead(_Frozen):
    """What the server knows of a silo's book: the last entry that a statement told, and what it has countersigned."""

    seq: Seq
    head: Digest
    countersigned: Countersignature | None = None


class LedgerCopy(LedgerHead):
    """With each population's last statement, one of which has that head."""

    copies: Annotated[tuple[SignedStatement, ...], Field(max_length=1000)]


def sign_statement(key: ec.EllipticCurvePrivateKey, statement: Statement) -> SignedStatement:
    """By the silo's enrolled key."""
    text = canonical_json(statement.model_dump(mode="json"))
    return SignedStatement(statement=text, signature=sign(key, Label.LEDGER, text).hex())


def verify_statement(signed: SignedStatement, public: ec.EllipticCurvePublicKey, silo: str) -> Statement:
    """What the silo said. Raises IdentityError if another key signed it, or it is about another silo; WireError."""
    verify(public, Label.LEDGER, bytes.fromhex(signed.signature), signed.statement)
    try:
        statement = Statement.model_validate_json(signed.statement)
    except ValidationError:
        raise WireError(
            "a ledger statement cannot be read", hint="Silo and server must run versions that fit together."
        ) from None
    if statement.silo != silo:
        raise IdentityError(
            f"a ledger statement is about silo {statement.silo}, not {silo}",
            hint="Each silo signs for itself alone.",
        )
    return statement


def countersign(key: ec.EllipticCurvePrivateKey, silo: str, seq: int, head: str) -> str:
    """The server has seen this silo's book at this head: a signature by the server's key, in hexadecimal."""
    return sign(key, Label.LEDGER_HEAD, silo, seq, head).hex()


def verify_countersignature(public: ec.EllipticCurvePublicKey, silo: str, seq: int, head: str, signature: str) -> None:
    """Raises IdentityError unless the server signed exactly this."""
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raise IdentityError(
            "a countersignature is not hexadecimal", hint="The server sends it, at every join."
        ) from None
    verify(public, Label.LEDGER_HEAD, raw, silo, seq, head)
