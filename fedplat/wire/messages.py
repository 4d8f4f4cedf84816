"""What server and silo say to each other in a run. Versioned, typed, and refusing what they do not know.

Each request has one reply type. `Reply.failed` is set when the silo could not do what it was asked; then the other
fields are absent. Buffers (weights, updates) travel beside the message as raw little-endian numbers, never in it:
small ones in the same record, large ones by a road of their own (`fedplat.wire.buffers`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from fedplat.ledger import LedgerCopy, LedgerHead, SignedStatement
from fedplat.metrics import MetricSums
from fedplat.params import Group, Layout, Parameter
from fedplat.reasons import Reason
from fedplat.secagg.messages import (
    AgreeAnswer,
    AgreeQuestion,
    Roster,
    SignedKey,
    TrainPart,
    UnmaskAnswer,
    UnmaskQuestion,
)
from fedplat.spec.base import PLAIN
from fedplat.wire.buffers import BufferRef, Digest

RunId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Short = Annotated[str, StringConstraints(max_length=200, pattern=PLAIN)]
Seconds = Annotated[float, Field(ge=0, lt=1e9)]
Amount = Annotated[int, Field(ge=0, lt=2**53)]


class WireMessage(BaseModel):
    """A message body: canonical JSON under one key of a Flower RecordDict."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    kind: ClassVar[str]
    version: Literal[1] = 1


class Request(WireMessage):
    """From the server, about one run. `buffer`: the large buffer that belongs to it and has to be fetched."""

    run: RunId
    spec_hash: Digest
    buffer: BufferRef | None = None


class Reply(WireMessage):
    """From a silo. `silo` makes equal contents of two silos different objects in the store. `buffer`: the large buffer
    that belongs to it and was delivered before."""

    run: RunId
    silo: Short
    failed: Reason | None = None
    buffer: BufferRef | None = None


class JoinRequest(Request):
    """Will you take part in this run? Carries the whole spec. `parent`: the run that this one continues. `ledger`: what
    the server knows of this silo's privacy ledger."""

    kind = "query.join"
    spec: str = Field(max_length=4_000_000)
    num_silos: Amount
    parent: RunId | None = None
    ledger: LedgerCopy | None = None


class Capabilities(WireMessage):
    """What a silo trains with."""

    fedplat: Short
    torch: Short = ""
    device: Short = "cpu"
    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    threads: Annotated[int, Field(ge=1, le=4096)] = 1


class WireParameter(BaseModel):
    """A parameter of the layout as it travels."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=PLAIN)]
    shape: tuple[Annotated[int, Field(ge=0, lt=2**40)], ...] = Field(max_length=16)
    dtype: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,20}$")]
    group: Group


class JoinReply(Reply):
    """Accepted: what I can do and what my model looks like. Refused: why. `empty_sums`: the task's metric sums over no
    records, by which masked ones are read; only for secure aggregation. `ledger`: what the run has reserved in the
    silo's privacy ledger; None for a run without data."""

    kind = "query.join"
    capabilities: Capabilities | None = None
    task_version: Short = ""
    task_hash: Short = ""
    layout: tuple[WireParameter, ...] = Field(default=(), max_length=200_000)
    frozen_hash: Short = ""
    num_examples: Amount | None = None
    min_cohort: Annotated[int, Field(ge=1, le=1000)] = 1
    empty_sums: MetricSums | None = None
    warnings: tuple[Reason, ...] = Field(default=(), max_length=100)
    ledger: SignedStatement | None = None

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        if len({p.name for p in self.layout}) != len(self.layout):
            raise ValueError("a parameter is listed twice")
        return self


class WeightsRequest(Request):
    """Send the initial weights (one silo is asked). The reply's buffer holds them."""

    kind = "query.weights"


class WeightsReply(Reply):
    """The initial weights are in the buffer."""

    kind = "query.weights"


class KeysRequest(Request):
    """Offer a fresh masking key for this epoch, the same when asked again."""

    kind = "query.keys"
    epoch: Annotated[int, Field(ge=1, lt=2**53)]


class KeysReply(Reply):
    """The key, signed."""

    kind = "query.keys"
    key: SignedKey | None = None


class Masking(WireMessage):
    """Mask what you answer with the keys of this roster. `max_weight`: the weight that counts fully."""

    roster: Roster
    max_weight: Annotated[float, Field(gt=0, lt=2**53)]


class StepRequest(Request):
    """A question that is asked of all of `roster` (sorted) alike, with the weights in the buffer. With `masking`, the
    answer is a masked vector, and opened by `agree` and `unmask` only together with the others'."""

    step: Annotated[int, Field(ge=1)]
    roster: tuple[Short, ...] = Field(max_length=1000)
    masking: Masking | None = None


class TrainRequest(StepRequest):
    """Train from the weights in the buffer. `evaluate`: measure them first; they are those of `round - 1`. `ledgers`:
    by silo, what the server knows of its privacy ledger; it is no part of the terms of a masked step."""

    kind = "train"
    round: Annotated[int, Field(ge=1)]
    evaluate: bool
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    ledgers: dict[Short, LedgerHead] = Field(default_factory=dict, max_length=1000)


class Timings(WireMessage):
    """Where a silo's time went in one round. `busy_share`: the workers' busy share of the training time."""

    waiting_s: Seconds = 0.0
    training_s: Seconds = 0.0
    evaluating_s: Seconds = 0.0
    communicating_s: Seconds = 0.0
    masking_s: Seconds = 0.0
    samples_per_s: Annotated[float, Field(ge=0)] = 0.0
    busy_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    restarts: Amount = 0


class TrainReply(Reply):
    """The update (`trained - received`, float32) is in the buffer, unless `failed`.

    `weight`: what it counts in the mean. `evaluated`: sums over the silo's test records with the received weights.
    `trained`: sums over the training batches as they were seen. Absent where the policy does not share them.
    `share_metrics`: whether the server may keep and show this silo's own figures. With secure aggregation, weight and
    sums ride in the masked vector, and `masked` is what goes with that; no other field depends on data. `ledger`: what
    the silo's patients were charged for this update, before it left.
    """

    kind = "train"
    round: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=1)]
    weight: Annotated[float, Field(gt=0, lt=2**53)] = 1.0
    num_examples: Amount | None = None
    evaluated: MetricSums | None = None
    trained: MetricSums | None = None
    share_metrics: bool = False
    masked: TrainPart | None = None
    timings: Timings = Timings()
    ledger: SignedStatement | None = None


class EvaluateRequest(StepRequest):
    """Measure the weights in the buffer: the closing evaluation, of the last round's model. Only a masked one is a
    step of its own."""

    kind = "evaluate"
    step: Annotated[int, Field(ge=1)] = 1
    roster: tuple[Short, ...] = Field(default=(), max_length=1000)
    round: Annotated[int, Field(ge=0)]


class EvaluateReply(Reply):
    """Sums over the silo's test records. Absent where the policy does not share them, and masked with secure
    aggregation. `ledger`: what the silo's patients were charged for them, before they left, if they are noised."""

    kind = "evaluate"
    round: Annotated[int, Field(ge=0)]
    evaluated: MetricSums | None = None
    share_metrics: bool = False
    masked: TrainPart | None = None
    timings: Timings = Timings()
    ledger: SignedStatement | None = None


class AgreeRequest(Request):
    """Sign the cohort of a step."""

    kind = "query.agree"
    question: AgreeQuestion


class AgreeReply(Reply):
    """The signature. `num_confirmed`: how many of the other silos of the step its administrator has confirmed."""

    kind = "query.agree"
    answer: AgreeAnswer | None = None
    num_confirmed: Amount = 0


class UnmaskRequest(Request):
    """Help to open the sum of a cohort that enough of its members have signed."""

    kind = "query.unmask"
    question: UnmaskQuestion


class UnmaskReply(Reply):
    """What opens the sum."""

    kind = "query.unmask"
    answer: UnmaskAnswer | None = None


def layout_to_wire(layout: Layout) -> tuple[WireParameter, ...]:
    """The layout as a join reply carries it."""
    pairs = zip(layout.parameters, layout.groups, strict=True)
    return tuple(WireParameter(name=p.name, shape=p.shape, dtype=p.dtype, group=g) for p, g in pairs)


def layout_from_wire(parameters: tuple[WireParameter, ...]) -> Layout:
    """The layout that a silo has sent."""
    known = tuple(Parameter(p.name, p.shape, p.dtype) for p in parameters)
    return Layout(known, tuple(p.group for p in parameters))
