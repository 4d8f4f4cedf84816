"""Workers without processes: they add 1 to every weight, count what they are asked, and can be made to fail."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedplat.identity import new_key
from fedplat.metrics import MetricSums
from fedplat.params import Group, Layout, Parameter, Vector
from fedplat.wire.http import Phase
from fedplat.wire.messages import Timings
from fedplat_silo.road import Road
from fedplat_silo.trainer.errors import Cancelled
from fedplat_silo.trainer.group import EvaluateOrder, EvaluateResult, Ready, TrainOrder, TrainResult
from fedplat_silo.trainer.memory import Weights, write_weights
from fedplat_silo.trainer.plan import TrainingPlan
from fedplat_silo.transport import Clock, Signer

LAYOUT = Layout((Parameter("weight", (2, 2), "float32"),), (Group.SHARED,))
SUMS = MetricSums(counts={"examples": [5]}, totals={"loss": 2.5})


@dataclass
class FakeWorkers:
    plan: TrainingPlan
    cast: Cast
    closed: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Ready:
        self.cast.did.append("start")
        if self.cast.failure is not None:
            raise self.cast.failure
        return Ready(self.cast.layout, "", 20, 5, (), "2.9", "cpu", self.plan.num_workers, self.plan.threads)

    def initial_weights(self) -> Vector:
        return np.zeros(self.cast.layout.size, dtype=np.float32)

    def train(self, order: TrainOrder, weights: Weights) -> TrainResult:
        self.cast.did.append(f"train {order.round}")
        if self.cast.failure is not None:
            raise self.cast.failure
        if self.cast.busy is not None:
            self.cast.busy.set()
            self.closed.wait(10)
            raise Cancelled
        self.cast.received = np.empty(weights.size, dtype=np.float32)
        write_weights(self.cast.received, weights)
        update = np.full(weights.size, self.cast.update, dtype=np.float32)
        return TrainResult(update, SUMS, SUMS if order.evaluate else None, Timings(training_s=1.5, restarts=1))

    def evaluate(self, order: EvaluateOrder, weights: Weights) -> EvaluateResult:
        self.cast.did.append(f"evaluate {order.round}")
        return EvaluateResult(SUMS, Timings(evaluating_s=0.5))

    def cancel(self) -> None:
        self.cast.did.append("cancel")
        self.closed.set()

    def close(self) -> None:
        self.cast.did.append("close")
        self.closed.set()


@dataclass
class Cast:
    """What all workers of a test share. `busy` is set when training has begun, which then never ends by itself."""

    did: list[str] = field(default_factory=list)
    plans: list[TrainingPlan] = field(default_factory=list)
    failure: Exception | None = None
    busy: threading.Event | None = None
    update: float = 1.0
    layout: Layout = LAYOUT
    received: Vector = field(default_factory=lambda: np.empty(0, dtype=np.float32))

    def make(self, plan: TrainingPlan, _log: Path, _report: Callable[[Phase, float], None]) -> FakeWorkers:
        self.plans.append(plan)
        return FakeWorkers(plan, self)


def no_road() -> Road:
    """To nowhere: for runs whose buffers travel in their messages."""
    return Road("localhost:1", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), Signer("hospital-a", new_key(), Clock()))
