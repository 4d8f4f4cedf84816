"""The bodies of our own routes: enrolment, wake-ups, progress. All under one prefix."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fedplat.wire.buffers import BufferRef, Digest
from fedplat.wire.messages import RunId, Short

PREFIX = "/v1/fedplat"
WAKE_TIMEOUT_S = 50.0  # proxies commonly cut what is idle for 60 s


class HttpBody(BaseModel):
    """JSON in a request or response of ours."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EnrolRequest(HttpBody):
    """The one-time secret, and the public key with a proof that the silo holds its private half."""

    silo: Short
    secret: Annotated[str, StringConstraints(min_length=16, max_length=100)]
    public_key: Annotated[str, StringConstraints(max_length=1000)]
    proof: Annotated[str, StringConstraints(max_length=300)]


class EnrolReply(HttpBody):
    """The silo's place in the federation."""

    silo: Short
    node_id: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}$")]
    server_key: Annotated[str, StringConstraints(max_length=1000)]


class Phase(StrEnum):
    """What a silo is doing in a run, in words that people read."""

    WAITING = "waiting"
    CHECKING = "checking the run"
    STARTING = "preparing (starting PyTorch)"
    EVALUATING = "evaluating"
    TRAINING = "training"
    RESTARTING = "restarting its workers"
    RECEIVING = "receiving"
    SENDING = "sending"


class Progress(HttpBody):
    """Where a silo is in a run; `share` of the phase is done."""

    run: RunId
    round: Annotated[int, Field(ge=0)] = 0
    phase: Phase = Phase.WAITING
    share: Annotated[float, Field(ge=0, le=1)] = 0.0


class WakeRequest(HttpBody):
    """I am here. `home` and `boot` tell this process from an older one; `holding`: messages I work on."""

    home: Digest
    boot: Annotated[int, Field(ge=1)]
    fedplat: Short
    holding: tuple[Short, ...] = Field(default=(), max_length=1000)
    runs: tuple[RunId, ...] = Field(default=(), max_length=1000)


class WakeReply(HttpBody):
    """`messages`: pull now. `runs`: those of my runs that are still alive."""

    messages: bool
    runs: tuple[RunId, ...] = ()


class Health(HttpBody):
    """The server is up. `time`: seconds since 1970 by its clock."""

    status: Literal["ok"] = "ok"
    fedplat: Short
    time: float


MEMBERSHIP = f"{PREFIX}/membership"


class Known(HttpBody):
    """For whom the server takes the silo that asks. `connected`: a process of that silo is there."""

    silo: Short
    connected: bool


BUFFERS = f"{PREFIX}/buffers"
"""POST: announce an upload. PUT /RUN/STEP?offset=N: its bytes from N to the end of that piece.
GET /RUN/DIGEST?offset=N: the bytes of a download from N on."""


class Announcement(HttpBody):
    """A buffer that this silo wants to upload for a step of a run (0: the initial weights)."""

    run: RunId
    step: Annotated[int, Field(ge=0)]
    buffer: BufferRef


class Standing(HttpBody):
    """How much of an upload the server has: the next byte is at `have_bytes`."""

    have_bytes: Annotated[int, Field(ge=0)]


class Problem(HttpBody):
    """An error of ours: a word for programs, a sentence for people."""

    error: Literal[
        "malformed",
        "unsigned",
        "unknown_silo",
        "revoked",
        "clock_skew",
        "replayed",
        "forbidden",
        "too_large",
        "not_found",
        "conflict",
        "refused",
        "unavailable",
        "damaged",
    ]
    message: str
    hint: str = ""
