"""A silo's part in one run: its workers, and the order of things in a round."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedplat import __version__
from fedplat.errors import DataError
from fedplat.home import SiloHome
from fedplat.metrics import MetricSums
from fedplat.params import Vector
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec, Weighting
from fedplat.wire.codec import Parcel
from fedplat.wire.http import Phase, Progress
from fedplat.wire.messages import (
    Capabilities,
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    Timings,
    TrainReply,
    TrainRequest,
    layout_to_wire,
)
from fedplat_silo.data.errors import Refused
from fedplat_silo.datasets import load_datasets
from fedplat_silo.policy import Policy
from fedplat_silo.records import forget_checkpoint, open_run
from fedplat_silo.spool import Finished, Order, Spool
from fedplat_silo.tasks.registry import identity
from fedplat_silo.trainer.errors import Cancelled
from fedplat_silo.trainer.group import EvaluateOrder, EvaluateResult, Ready, TrainOrder, TrainResult
from fedplat_silo.trainer.plan import TrainingPlan

log = logging.getLogger(__name__)
NO_DATA = "none"  # the dataset of a task that needs none


class Workers(Protocol):
    """The processes that train; `fedplat_silo.trainer.group.WorkerGroup`."""

    def start(self) -> Ready: ...
    def initial_weights(self) -> Vector: ...
    def train(self, order: TrainOrder, weights: Vector) -> TrainResult: ...
    def evaluate(self, order: EvaluateOrder, weights: Vector) -> EvaluateResult: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


MakeWorkers = Callable[[TrainingPlan, Path, Callable[[Phase, float], None]], Workers]


@dataclass(frozen=True)
class Site:
    """What all runs of this silo have in common."""

    home: SiloHome
    make_workers: MakeWorkers
    report: Callable[[Progress], None]
    num_workers: int = 1
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """The last exchange with the server: how long the silo waited for it, and spent on pulling and pushing."""

    waiting_s: float = 0.0
    communicating_s: float = 0.0


class Participation:
    """One run at this silo. Used by the run's own thread; only `interrupt` and `close` may come from others."""

    def __init__(self, run: str, spec: RunSpec, policy: Policy, site: Site) -> None:
        self.run = run
        self.spec = spec
        self.policy = policy
        self._site = site
        self._spool = Spool(site.home.spool)
        self._round = 0
        self._workers: Workers | None = None
        self._ready: Ready | None = None
        self._over = threading.Event()

    def join(self) -> JoinReply:
        """Prepares the workers and says what this silo trains with. Raises Refused, TrainingFailed, Cancelled."""
        self._say(Phase.CHECKING, 0.0)
        task = identity(self.spec.task.name)
        ready = self._prepare()[1]
        self._say(Phase.WAITING, 0.0)
        return JoinReply(
            run=self.run,
            silo=self._site.home.name,
            capabilities=Capabilities(
                fedplat=__version__,
                torch=ready.torch_version,
                device=ready.device,
                workers=ready.num_workers,
                threads=ready.threads,
            ),
            task_version=task.version,
            task_hash=task.sha256,
            layout=layout_to_wire(ready.layout),
            frozen_hash=ready.frozen_hash,
            num_examples=self._count(ready),
            min_cohort=self.policy.smallest_cohort,
            warnings=ready.warnings,
        )

    def initial_weights(self) -> Vector:
        """The model built from the run's seed."""
        return self._prepare()[0].initial_weights()

    def train(self, parcel: Parcel[TrainRequest], exchange: Exchange) -> tuple[TrainReply, Vector]:
        """Trains, and has the update on disk before it returns; asked again, it returns what is on disk."""
        request = parcel.body
        self._round = request.round
        self._spool.forget_before(self.run, request.round)
        order = Order(
            run=self.run,
            round=request.round,
            spec_hash=request.spec_hash,
            weights=hashlib.sha256(parcel.buffer).hexdigest(),
        )
        finished = self._spool.get(order)
        if finished is None:
            finished = self._train(parcel, exchange)
            self._spool.put(order, finished)
        else:
            log.info("run %s: round %d is asked for again, and sent again", self.run, request.round)
        forget_checkpoint(self._site.home, self.run)
        self._say(Phase.SENDING, 0.0)
        return finished.reply.model_copy(update={"step": request.step}), finished.update

    def evaluate(self, parcel: Parcel[EvaluateRequest], exchange: Exchange) -> EvaluateReply:
        """Measures the weights on the silo's test records."""
        self._round = parcel.body.round
        workers, ready = self._prepare()
        result = workers.evaluate(EvaluateOrder(parcel.body.round), parcel.vector(ready.layout.size))
        self._say(Phase.SENDING, 0.0)
        return EvaluateReply(
            run=self.run,
            silo=self._site.home.name,
            round=parcel.body.round,
            evaluated=self._shown(result.evaluated),
            share_metrics=self.policy.share_metrics == "per-silo",
            timings=_timings(result.timings, exchange),
        )

    def interrupt(self) -> None:
        """Ends what the workers do now, which raises Cancelled; the next command starts them anew."""
        if self._workers is not None:
            self._workers.cancel()

    def close(self) -> None:
        """Ends the workers and what they do; from now on everything raises Cancelled."""
        self._over.set()
        if self._workers is not None:
            self._workers.close()

    def _train(self, parcel: Parcel[TrainRequest], exchange: Exchange) -> Finished:
        request = parcel.body
        workers, ready = self._prepare()
        order = TrainOrder(round=request.round, proximal_mu=request.proximal_mu, evaluate=request.evaluate)
        result = workers.train(order, parcel.vector(ready.layout.size))
        reply = TrainReply(
            run=self.run,
            silo=self._site.home.name,
            round=request.round,
            step=request.step,
            weight=ready.num_train if self.spec.strategy.weighting is Weighting.EXAMPLES else 1.0,
            num_examples=self._count(ready),
            evaluated=self._shown(result.evaluated),
            trained=self._shown(result.trained),
            share_metrics=self.policy.share_metrics == "per-silo",
            timings=_timings(result.timings, exchange),
        )
        log.info(
            "run %s: round %d of %d trained in %.1f s",
            self.run,
            request.round,
            self.spec.rounds.count,
            result.timings.training_s,
        )
        return Finished(reply, result.update)

    def _prepare(self) -> tuple[Workers, Ready]:
        """The workers, started when they are not there: at the join, or after a restart of this process."""
        if self._workers is None or self._ready is None:
            self._check_open()
            log.info("run %s: preparing (starting PyTorch)", self.run)
            self._workers = self._site.make_workers(self._plan(), self._site.home.log, self._say)
            self._ready = self._workers.start()
        self._check_open()
        return self._workers, self._ready

    def _check_open(self) -> None:
        if self._over.is_set():
            self.close()
            raise Cancelled

    def _plan(self) -> TrainingPlan:
        name = self.spec.data.name
        try:
            known = {NO_DATA: Path(os.devnull)} | load_datasets(self._site.home.datasets)
        except DataError as error:
            log.warning("%s", error.message)
            raise Refused(Reason.of(Code.DATASET_UNREADABLE, dataset=name), error.message) from None
        data = known.get(name)
        if data is None:
            raise Refused(Reason.of(Code.DATASET_UNKNOWN, dataset=name), f"no dataset {name!r} in datasets.toml")
        num_ranks = len(self._site.gpus) or self._site.num_workers
        return TrainingPlan(
            spec=self.spec,
            silo=self._site.home.name,
            data=data,
            run_dir=open_run(self._site.home, self.run),
            num_workers=self._site.num_workers,
            gpus=self._site.gpus,
            threads=threads_per_worker(self.policy.max_threads, num_ranks),
        )

    def _say(self, phase: Phase, share: float) -> None:
        self._site.report(Progress(run=self.run, round=self._round, phase=phase, share=share))

    def _count(self, ready: Ready) -> int | None:
        return ready.num_train if self.policy.share_counts else None

    def _shown(self, sums: MetricSums | None) -> MetricSums | None:
        """The sums, if the policy lets them out."""
        return None if self.policy.share_metrics == "none" else sums


def threads_per_worker(max_threads: int, num_workers: int) -> int:
    """An equal share of the allowed cores (0: all of this process's), at least one."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(max_threads or cores, cores) // num_workers)


def _timings(timings: Timings, exchange: Exchange) -> Timings:
    more = {"waiting_s": exchange.waiting_s, "communicating_s": exchange.communicating_s}
    return timings.model_copy(update=more)
