"""What the silo's process and its workers say to each other: one JSON object a line.

Worker: Hello. Parent: Setup, with the two memfds. Each worker: Prepared. Then, for each Command, Progress from rank 0
and one Done from each rank, or Failed. The agent says Hello, and Exited when workers have died.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from fedplat.metrics import MetricSums
from fedplat.reasons import Reason
from fedplat.wire.http import Phase
from fedplat.wire.messages import WireParameter
from fedplat_silo.trainer.plan import TrainingPlan

AGENT = -1  # the agent's place where workers have their rank


class Line(BaseModel):
    """A message; NaN and infinity are allowed in the sums of a round that went wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hello(Line):
    """I am this rank of this generation (restarts of the agent's workers so far)."""

    kind: Literal["hello"] = "hello"
    rank: int
    generation: int = 0


class Prepared(Line):
    """The task is loaded, the data is checked, the model is built. `num_units`: how many patients or records a private
    run samples from, 0 in any other."""

    kind: Literal["prepared"] = "prepared"
    layout: tuple[WireParameter, ...]
    frozen_hash: str
    num_train: int
    num_test: int
    warnings: tuple[Reason, ...]
    torch_version: str
    device: str
    num_units: int = 0
    empty_sums: MetricSums | None = None


class Progress(Line):
    """`share` of the phase is done."""

    kind: Literal["progress"] = "progress"
    phase: Phase
    share: float


class Done(Line):
    """A rank's part of the result. `busy_s`: CPU time in training; on a GPU, time not spent waiting for data.
    `num_recovered`: of the examples, those that were trained on before a kill, so not in the times.
    `num_private_steps`: noised steps that are in the update, at `sampling_rate` and `noise_multiplier`; the same at
    every rank. `metrics_noise_multiplier`: of the noise in `evaluated`, which rank 0 alone has then."""

    kind: Literal["done"] = "done"
    trained: MetricSums | None = None
    evaluated: MetricSums | None = None
    training_s: float = 0.0
    evaluating_s: float = 0.0
    busy_s: float = 0.0
    num_recovered: int = 0
    num_private_steps: int = 0
    sampling_rate: float = 0.0
    noise_multiplier: float = 0.0
    metrics_noise_multiplier: float = 0.0


class Failed(Line):
    """A rank could not do it, and why; the detail is in the log."""

    kind: Literal["failed"] = "failed"
    reason: Reason


class Exited(Line):
    """From the agent: the exit statuses of workers that died, by rank."""

    kind: Literal["exited"] = "exited"
    generation: int
    statuses: dict[int, int]


class Setup(Line):
    """To a worker: its run. The memfds (weights in, weights out) come with it."""

    kind: Literal["setup"] = "setup"
    plan: TrainingPlan


class Command(Line):
    """To a worker: do this. Weights are read from the first memfd, a vector is written to the second.
    `noise_multiplier`: MUST be given where training is private."""

    kind: Literal["weights", "train", "evaluate"]
    round: int = 0
    proximal_mu: float = 0.0
    evaluate: bool = False
    noise_multiplier: float | None = None


Event = Annotated[Hello | Prepared | Progress | Done | Failed | Exited, Field(discriminator="kind")]
EVENTS: TypeAdapter[Event] = TypeAdapter(Event)
