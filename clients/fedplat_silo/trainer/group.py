"""The workers of one run, as the silo's process sees them: weights in, update out."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from fedplat.durable import make_private_dir
from fedplat.errors import LayoutError
from fedplat.metrics import MetricSums, add_sums
from fedplat.params import Layout, Vector
from fedplat.privacy.events import SampledGaussian
from fedplat.privacy.planning import evaluations
from fedplat.reasons import Code, Reason
from fedplat.wire.http import Phase
from fedplat.wire.messages import Timings, layout_from_wire
from fedplat_silo.trainer.crew import Crew
from fedplat_silo.trainer.errors import Cancelled, TrainingFailed, WorkerLost
from fedplat_silo.trainer.memory import Weights, create_memory, map_vector, write_weights
from fedplat_silo.trainer.messages import Command, Done, Failed, Prepared, Progress
from fedplat_silo.trainer.plan import TrainingPlan

MAX_RESTARTS = 3
_STEP_S = 0.5
_GRACE_S = 1.0
Reply = TypeVar("Reply", Prepared, Done)


@dataclass(frozen=True)
class Ready:
    """What the workers have found. `frozen_hash`: SHA-256 of the frozen tensors, "" if there are none."""

    layout: Layout
    frozen_hash: str
    num_train: int
    num_test: int
    warnings: tuple[Reason, ...]
    torch_version: str
    device: str
    num_workers: int
    threads: int
    num_units: int = 0
    """How many patients or records a private run samples from."""
    empty_sums: MetricSums | None = None
    """The task's metric sums over no records, if they are to be masked."""


@dataclass(frozen=True)
class TrainOrder:
    """Train in `round`; `evaluate` measures the received weights first. `noise_multiplier`: MUST be given where
    training is private."""

    round: int
    proximal_mu: float = 0.0
    evaluate: bool = False
    noise_multiplier: float | None = None


@dataclass(frozen=True)
class EvaluateOrder:
    """Measure the weights that came out of `round`."""

    round: int


@dataclass(frozen=True)
class TrainResult:
    """`update`: trained - received, the shared parameters, read-only and until the next command only: it lies in the
    memory that the workers write to. `trained`: sums over the batches as they were seen; over no examples where metrics
    are private. `released`: what is noised in it, the steps that are in the update and the evaluation.

    `timings` has what happens in the workers. Its `busy_share` is, on the CPU, the workers' CPU time over what their
    threads could have used while training; on GPUs, the share of the training time not spent waiting for data.
    """

    update: Vector
    trained: MetricSums
    evaluated: MetricSums | None
    timings: Timings
    released: tuple[SampledGaussian, ...] = ()


@dataclass(frozen=True)
class EvaluateResult:
    """`evaluated` is None if the silo has no test set. `released`: the evaluation, if it is noised."""

    evaluated: MetricSums | None
    timings: Timings
    released: tuple[SampledGaussian, ...] = ()


class WorkerGroup:
    """Workers that live from the first round of a run to the last.

    Commands raise TrainingFailed (then the next command starts new workers) or Cancelled. A worker that dies is
    replaced and the command repeated, with the same result, at most `MAX_RESTARTS` times a command. `log` takes what
    the workers print: it may name patients' values and stays in the silo. `on_progress` is called by the thread that
    gave the command.
    """

    def __init__(self, plan: TrainingPlan, log: Path, on_progress: Callable[[Phase, float], None]) -> None:
        make_private_dir(plan.run_dir)
        self._plan = plan
        self._on_progress = on_progress
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._fds = create_memory("fedplat-weights"), create_memory("fedplat-update")
        self._crew = Crew(plan, log, self._fds, self._wake)
        self._commanding = threading.Lock()
        self._is_closed = False
        self._phase = "preparing"
        self._ready: Ready | None = None
        self._weights = self._update = np.empty(0, dtype=np.float32)  # shared with the workers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers' process ids, by rank; empty while there are none."""
        return self._crew.pids

    def start(self) -> Ready:
        """Starts the workers, which load the task, check the data and build the model."""
        self._run(None)
        assert self._ready is not None
        return self._ready

    def initial_weights(self) -> Vector:
        """The shared parameters of a new model: a function of the run's seed, the same in every silo."""
        self._run(Command(kind="weights"))
        return self._update.copy()

    def train(self, order: TrainOrder, weights: Weights) -> TrainResult:
        """One round. LayoutError if the weights do not fit."""
        command = Command(kind="train", **asdict(order))
        done, restarts = self._run(command, weights)
        trained = add_sums(d.trained for d in done if d.trained is not None)
        timings = self._timings(done, restarts, trained.num_examples - sum(d.num_recovered for d in done))
        update = self._update.view()
        update.flags.writeable = False
        return TrainResult(update, trained, _evaluated(done), timings, released_by(done[0]))

    def evaluate(self, order: EvaluateOrder, weights: Weights) -> EvaluateResult:
        """Measures the weights on the test set. LayoutError if they do not fit."""
        done, restarts = self._run(Command(kind="evaluate", round=order.round), weights)
        return EvaluateResult(_evaluated(done), self._timings(done, restarts, 0), released_by(done[0]))

    def cancel(self) -> None:
        """Ends the command that another thread waits for; that thread gets Cancelled."""
        with suppress(OSError):  # closed
            self._waker.send(b"\0")

    def close(self) -> None:
        """Ends all workers, within two seconds, and a command that runs."""
        self._is_closed = True
        self.cancel()
        with self._commanding:
            if self._waker.fileno() < 0:
                return
            self._crew.close()
            self._wake.close()
            self._waker.close()
            for fd in self._fds:
                os.close(fd)

    def _run(self, command: Command | None, weights: Weights | None = None) -> tuple[list[Done], int]:
        """(one answer a rank, restarts)."""
        with self._commanding:
            with suppress(OSError):  # what is there is a cancel that came after its command had ended
                self._wake.recv(1024)
            if self._is_closed:
                raise Cancelled
            try:
                return self._attempt(command, weights)
            except LayoutError:
                raise
            except BaseException:
                self._crew.stop()
                raise

    def _attempt(self, command: Command | None, weights: Weights | None) -> tuple[list[Done], int]:
        status = 0
        for restarts in range(MAX_RESTARTS + 1):
            try:
                self._prepare()
                return self._execute(command, weights), restarts
            except WorkerLost as lost:
                status = lost.status
        words: dict[str, str | int] = {"phase": self._phase, "status": status, "restarts": MAX_RESTARTS}
        raise TrainingFailed(Reason.of(Code.WORKERS_FAILED, **words))

    def _prepare(self) -> None:
        if self._crew.is_complete:
            return
        self._phase = "preparing"
        self._on_progress(Phase.STARTING if self._ready is None else Phase.RESTARTING, 0.0)
        self._crew.assemble()
        first = self._collect(Prepared)[0]
        self._ready = Ready(
            layout=layout_from_wire(first.layout),
            frozen_hash=first.frozen_hash,
            num_train=first.num_train,
            num_test=first.num_test,
            warnings=first.warnings,
            torch_version=first.torch_version,
            device=first.device,
            num_workers=self._plan.num_ranks,
            threads=self._plan.threads,
            num_units=first.num_units,
            empty_sums=first.empty_sums,
        )
        self._weights, self._update = (map_vector(fd, self._ready.layout.size) for fd in self._fds)

    def _execute(self, command: Command | None, weights: Weights | None) -> list[Done]:
        if command is None:
            return []
        assert self._ready is not None
        if weights is not None:
            if weights.shape != self._weights.shape:
                size = self._ready.layout.size
                raise LayoutError(f"a vector of {weights.size} elements does not fit a layout of {size}")
            write_weights(self._weights, weights)
        self._crew.send(command)
        return self._collect(Done)

    def _collect(self, expected: type[Reply]) -> list[Reply]:
        """One reply a rank, in the order of ranks."""
        replies: dict[int, Reply] = {}
        failure, deadline = None, inf
        while len(replies) < self._plan.num_ranks or failure:
            for rank, event in self._crew.poll(_STEP_S):
                if isinstance(event, expected):
                    replies[rank] = event
                elif isinstance(event, Progress):
                    self._phase = event.phase.value
                    self._on_progress(event.phase, min(max(event.share, 0.0), 1.0))
                elif isinstance(event, Failed) and failure is None:
                    # One rank's death makes others fail: wait for it a moment before the task is blamed.
                    failure = event
                    deadline = time.monotonic() + (_GRACE_S if self._plan.num_ranks > 1 else 0.0)
            if failure is not None and time.monotonic() >= deadline:
                raise TrainingFailed(failure.reason)
        return [replies[rank] for rank in sorted(replies)]

    def _timings(self, done: list[Done], restarts: int, num_examples: int) -> Timings:
        training_s = max(d.training_s for d in done)
        cores = self._plan.num_ranks * (1 if self._plan.gpus else self._plan.threads)
        busy_share = sum(d.busy_s for d in done) / (training_s * cores) if training_s else 0.0
        return Timings(
            training_s=training_s,
            evaluating_s=max(d.evaluating_s for d in done),
            samples_per_s=num_examples / training_s if training_s else 0.0,
            busy_share=min(1.0, max(0.0, busy_share)),
            restarts=restarts,
        )


def released_by(done: Done) -> tuple[SampledGaussian, ...]:
    """What is noised in rank 0's answer."""
    found = []
    if done.num_private_steps:
        step = SampledGaussian(
            sampling_rate=done.sampling_rate,
            noise_multiplier=done.noise_multiplier,
            num_steps=done.num_private_steps,
        )
        found.append(step)
    if done.metrics_noise_multiplier:
        found.append(evaluations(done.metrics_noise_multiplier))
    return tuple(found)


def _evaluated(done: list[Done]) -> MetricSums | None:
    parts = [d.evaluated for d in done if d.evaluated is not None]
    return add_sums(parts) if parts else None
