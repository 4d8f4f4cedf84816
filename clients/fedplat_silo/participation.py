"""A silo's part in one run: its workers, and the order of things in a round."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from fedplat import __version__
from fedplat.errors import DataError, WireError
from fedplat.home import SiloHome
from fedplat.metrics import MetricSums
from fedplat.params import Vector
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec, Weighting
from fedplat.wire.buffers import INLINE_BYTES
from fedplat.wire.codec import Parcel
from fedplat.wire.http import Phase, Progress
from fedplat.wire.messages import (
    Capabilities,
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    Reply,
    Timings,
    TrainReply,
    TrainRequest,
    WeightsReply,
    layout_to_wire,
)
from fedplat_silo.data.errors import Refused
from fedplat_silo.datasets import load_datasets
from fedplat_silo.policy import Policy
from fedplat_silo.records import forget_checkpoint, open_run
from fedplat_silo.road import Road, forget_fetched
from fedplat_silo.spool import Finished, Order, Spool, Stored
from fedplat_silo.tasks.registry import identity
from fedplat_silo.trainer.errors import Cancelled
from fedplat_silo.trainer.group import EvaluateOrder, EvaluateResult, Ready, TrainOrder, TrainResult
from fedplat_silo.trainer.memory import Weights, map_weights
from fedplat_silo.trainer.plan import TrainingPlan

Answer = TypeVar("Answer", bound=Reply)
log = logging.getLogger(__name__)
NO_DATA = "none"  # the dataset of a task that needs none


class Workers(Protocol):
    """The processes that train; `fedplat_silo.trainer.group.WorkerGroup`."""

    def start(self) -> Ready: ...
    def initial_weights(self) -> Vector: ...
    def train(self, order: TrainOrder, weights: Weights) -> TrainResult: ...
    def evaluate(self, order: EvaluateOrder, weights: Weights) -> EvaluateResult: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


MakeWorkers = Callable[[TrainingPlan, Path, Callable[[Phase, float], None]], Workers]


@dataclass(frozen=True)
class Site:
    """What all runs of this silo have in common."""

    home: SiloHome
    make_workers: MakeWorkers
    report: Callable[[Progress], None]
    make_road: Callable[[], Road]
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
        self._road = site.make_road()
        self._transfer_s = 0.0
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

    def initial_weights(self) -> tuple[WeightsReply, bytes]:
        """The model built from the run's seed, and its small buffer; a large one is at the server."""
        weights = self._prepare()[0].initial_weights()
        stored = self._spool.put_weights(self.run, weights, self.spec.transport.precision)
        return self._send(WeightsReply(run=self.run, silo=self._site.home.name), 0, stored)

    def train(self, parcel: Parcel[TrainRequest], exchange: Exchange) -> tuple[TrainReply, bytes]:
        """Trains, and has the update in the spool before anything leaves; asked again, it sends what is there. Returns
        the reply and its small buffer; a large one is at the server."""
        request = parcel.body
        self._round = request.round
        self._spool.forget_before(self.run, request.round)
        order = Order(
            run=self.run,
            round=request.round,
            spec_hash=request.spec_hash,
            weights=request.buffer.digest if request.buffer else hashlib.sha256(parcel.buffer).hexdigest(),
        )
        finished = self._spool.get(order)
        if finished is None:
            finished = self._train(parcel, order, exchange)
        else:
            log.info("run %s: round %d is asked for again, and sent again", self.run, request.round)
        forget_fetched(self._spool.folder(self.run))
        reply = finished.reply.model_copy(update={"step": request.step})
        # A large update is on its way while the disk still works on it; the reply, which makes it count, waits.
        with ThreadPoolExecutor(1) as disk:
            settled = disk.submit(self._spool.settle, order)
            sent = self._send(reply, request.step, finished.update)
            settled.result()
        forget_checkpoint(self._site.home, self.run)
        return sent

    def evaluate(self, parcel: Parcel[EvaluateRequest], exchange: Exchange) -> EvaluateReply:
        """Measures the weights on the silo's test records."""
        self._round = parcel.body.round
        workers, ready = self._prepare()
        result = workers.evaluate(EvaluateOrder(parcel.body.round), self._weights(parcel, ready))
        forget_fetched(self._spool.folder(self.run))
        self._say(Phase.SENDING, 0.0)
        return EvaluateReply(
            run=self.run,
            silo=self._site.home.name,
            round=parcel.body.round,
            evaluated=self._shown(result.evaluated),
            share_metrics=self.policy.share_metrics == "per-silo",
            timings=self._timings(result.timings, exchange),
        )

    def interrupt(self) -> None:
        """Ends what the workers do now, or a transfer, which raises Cancelled; the next command starts them anew."""
        self._road.cancel()
        if self._workers is not None:
            self._workers.cancel()

    def close(self) -> None:
        """Ends the workers, what they do, and a transfer; from now on everything raises Cancelled."""
        self._over.set()
        self._road.close()
        if self._workers is not None:
            self._workers.close()

    def _train(self, parcel: Parcel[TrainRequest], spool_order: Order, exchange: Exchange) -> Finished:
        request = parcel.body
        workers, ready = self._prepare()
        order = TrainOrder(round=request.round, proximal_mu=request.proximal_mu, evaluate=request.evaluate)
        result = workers.train(order, self._weights(parcel, ready))
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
            timings=self._timings(result.timings, exchange),
        )
        log.info(
            "run %s: round %d of %d trained in %.1f s",
            self.run,
            request.round,
            self.spec.rounds.count,
            result.timings.training_s,
        )
        return self._spool.put(spool_order, reply, result.update, self.spec.transport.precision)

    def _weights(self, parcel: Parcel[TrainRequest] | Parcel[EvaluateRequest], ready: Ready) -> Weights:
        """The weights that came with a request, or are fetched now."""
        ref, size, precision = parcel.body.buffer, ready.layout.size, self.spec.transport.precision
        if ref is None:
            return parcel.vector(size, precision)
        if ref.size_bytes != size * precision.item_bytes:
            raise WireError(f"weights of {ref.size_bytes} bytes are not {size} numbers in {precision}")
        folder = self._spool.folder(self.run)
        with self._moving(Phase.RECEIVING) as report:
            return map_weights(self._road.fetch(self.run, ref, folder, report), precision)

    def _send(self, reply: Answer, step: int, stored: Stored) -> tuple[Answer, bytes]:
        """The reply as it leaves: with its buffer beside it, or once the server has the buffer."""
        with self._moving(Phase.SENDING) as report:
            if stored.ref.size_bytes <= INLINE_BYTES:
                return reply, stored.region.read(0, stored.ref.size_bytes)
            self._road.deliver(self.run, step, stored.region, stored.ref, report)
        return reply.model_copy(update={"buffer": stored.ref}), b""

    @contextmanager
    def _moving(self, phase: Phase) -> Iterator[Callable[[float], None]]:
        """Says how far a transfer is, and takes its time."""
        self._say(phase, 0.0)
        begun_s = time.monotonic()
        try:
            yield lambda share: self._say(phase, share)
        finally:
            self._transfer_s += time.monotonic() - begun_s

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

    def _timings(self, timings: Timings, exchange: Exchange) -> Timings:
        """Communicating is also what large buffers took: these weights, and the update before."""
        communicating_s, self._transfer_s = exchange.communicating_s + self._transfer_s, 0.0
        more = {"waiting_s": exchange.waiting_s, "communicating_s": communicating_s}
        return timings.model_copy(update=more)

    def _shown(self, sums: MetricSums | None) -> MetricSums | None:
        """The sums, if the policy lets them out."""
        return None if self.policy.share_metrics == "none" else sums


def threads_per_worker(max_threads: int, num_workers: int) -> int:
    """An equal share of the allowed cores (0: all of this process's), at least one."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(max_threads or cores, cores) // num_workers)
