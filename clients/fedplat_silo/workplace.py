"""Where a run's training happens at this silo: its data and its worker processes, started when they are needed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedplat.errors import DataError
from fedplat.home import SiloHome
from fedplat.params import Vector
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec
from fedplat.wire.http import Phase, Progress
from fedplat_silo.accounts import NO_DATA
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.exclusion import exclusion_file
from fedplat_silo.datasets import load_datasets
from fedplat_silo.records import open_run
from fedplat_silo.road import Road
from fedplat_silo.trainer.errors import Cancelled
from fedplat_silo.trainer.group import EvaluateOrder, EvaluateResult, Ready, TrainOrder, TrainResult
from fedplat_silo.trainer.memory import Weights
from fedplat_silo.trainer.plan import TrainingPlan

log = logging.getLogger(__name__)


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


class Workplace:
    """One run's workers. Thread-safe, so that they can be started ahead, interrupted and closed from anywhere.

    `enrol` says whose data these are before a worker reads them; `say` takes what the workers tell of their progress.
    """

    def __init__(
        self, run: str, spec: RunSpec, site: Site, enrol: Callable[[Path], None], say: Callable[[Phase, float], None]
    ) -> None:
        self._run = run
        self._spec = spec
        self._site = site
        self._enrol = enrol
        self._say = say
        self._workers: Workers | None = None
        self._ready: Ready | None = None
        self._over = threading.Event()
        self._preparing = threading.Lock()

    def prepare(self, max_threads: int) -> tuple[Workers, Ready]:
        """The workers, started when they are not there: at the join, or after a restart of this process. Raises
        Cancelled once the workplace is closed, Refused, TrainingFailed, LedgerError."""
        with self._preparing:
            if self._workers is None or self._ready is None:
                self._check_open()
                plan = self._plan(max_threads)
                self._enrol(plan.data)
                log.info("run %s: preparing (starting PyTorch)", self._run)
                self._workers = self._site.make_workers(plan, self._site.home.log, self._say)
                self._ready = self._workers.start()
            self._check_open()
            return self._workers, self._ready

    def interrupt(self) -> None:
        """Ends what the workers do now, which raises Cancelled; the next command starts them anew."""
        if self._workers is not None:
            self._workers.cancel()

    def close(self) -> None:
        """Ends the workers and what they do, for good."""
        self._over.set()
        if self._workers is not None:
            self._workers.close()

    def _check_open(self) -> None:
        if self._over.is_set():
            self.close()
            raise Cancelled

    def _plan(self, max_threads: int) -> TrainingPlan:
        num_ranks = len(self._site.gpus) or self._site.num_workers
        return TrainingPlan(
            spec=self._spec,
            silo=self._site.home.name,
            data=self._dataset(),
            exclude=exclusion_file(self._site.home),
            run_dir=open_run(self._site.home, self._run),
            num_workers=self._site.num_workers,
            gpus=self._site.gpus,
            threads=threads_per_worker(max_threads, num_ranks),
        )

    def _dataset(self) -> Path:
        name = self._spec.data.name
        try:
            known = {NO_DATA: Path(os.devnull)} | load_datasets(self._site.home.datasets)
        except DataError as error:
            log.warning("%s", error.message)
            raise Refused(Reason.of(Code.DATASET_UNREADABLE, dataset=name), error.message) from None
        data = known.get(name)
        if data is None:
            raise Refused(Reason.of(Code.DATASET_UNKNOWN, dataset=name), f"no dataset {name!r} in datasets.toml")
        return data


def threads_per_worker(max_threads: int, num_workers: int) -> int:
    """An equal share of the allowed cores (0: all of this process's), at least one."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(max_threads or cores, cores) // num_workers)
