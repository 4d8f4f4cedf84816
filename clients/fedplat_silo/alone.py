"""What each dataset gives without the federation: the same training on one dataset alone, measured on all of them."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedplat.durable import make_private_dir
from fedplat.errors import DataError, SpecError
from fedplat.metrics import add_sums, summarise
from fedplat.params import Vector
from fedplat.spec import RunSpec, TabularOptions
from fedplat.spec.model import Split
from fedplat_silo.data.tables import read_table
from fedplat_silo.trainer.errors import TrainingFailed
from fedplat_silo.trainer.group import EvaluateOrder, Ready, TrainOrder
from fedplat_silo.trainer.plan import TrainingPlan
from fedplat_silo.workplace import MakeWorkers, Workers, threads_per_worker

POOLED = "all together"


@dataclass(frozen=True)
class Outcome:
    """One model: what it was trained on, and its figures over the test records of all datasets."""

    trained_on: str
    num_train: int
    num_test: int
    figures: dict[str, float]


@dataclass(frozen=True)
class _Site:
    """A dataset with its own workers."""

    name: str
    workers: Workers
    ready: Ready


def train_alone(
    spec: RunSpec, paths: Sequence[Path], make_workers: MakeWorkers, log: Path, *, pooled: bool = False
) -> Iterator[Outcome]:
    """For each dataset: as many rounds of training as the spec says, on it alone, then one evaluation on the test
    part of every dataset, each prepared as its own silo would. `pooled`: at last also on all of them together.

    Raises SpecError for a spec that this cannot be done with, DataError for data that does not fit it.
    """
    _check(spec, pooled)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedplat-alone-")))
        names = _names(paths)
        sites = [
            stack.enter_context(_site(spec, name, path, folder, make_workers, log))
            for name, path in zip(names, paths, strict=True)
        ]
        for site in sites:
            yield _outcome(spec, site, sites)
        if pooled:
            path = _pool(spec, paths, folder)
            everything = stack.enter_context(_site(spec, POOLED, path, folder, make_workers, log))
            yield _outcome(spec, everything, [everything])


def _check(spec: RunSpec, pooled: bool) -> None:
    if spec.model.local:
        raise SpecError(
            "a model with local parameters cannot be measured on another silo's data",
            hint="Leave [model] local out for this comparison.",
        )
    if spec.model.init != "seed":
        raise SpecError("training alone starts from the run's seed", hint='Set [model] init = "seed" for it.')
    if pooled and spec.task.name != "tabular":
        raise SpecError(f"the data of the task {spec.task.name!r} cannot be pooled", hint="Leave --pooled out.")


def _names(paths: Sequence[Path]) -> list[str]:
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


@contextmanager
def _site(spec: RunSpec, name: str, path: Path, folder: Path, make_workers: MakeWorkers, log: Path) -> Iterator[_Site]:
    run_dir = folder / f"run-{len(list(folder.iterdir()))}"
    make_private_dir(run_dir)
    plan = TrainingPlan(spec=spec, silo=name, data=path, run_dir=run_dir, threads=threads_per_worker(0, 1))
    workers = make_workers(plan, log, lambda _phase, _share: None)
    try:
        with _in_words(name, log):
            ready = workers.start()
        yield _Site(name, workers, ready)
    finally:
        workers.close()


def _outcome(spec: RunSpec, trained: _Site, measured: Sequence[_Site]) -> Outcome:
    weights = _train(spec, trained)
    order = EvaluateOrder(spec.rounds.count)
    results = [site.workers.evaluate(order, weights).evaluated for site in measured]
    sums = add_sums(r for r in results if r is not None)
    return Outcome(trained.name, trained.ready.num_train, sums.num_examples, summarise(sums))


def _train(spec: RunSpec, site: _Site) -> Vector:
    weights = site.workers.initial_weights()
    for number in range(1, spec.rounds.count + 1):
        weights = weights + site.workers.train(TrainOrder(round=number), weights).update
    return weights


@contextmanager
def _in_words(name: str, log: Path) -> Iterator[None]:
    try:
        yield
    except TrainingFailed as failed:
        raise DataError(f"{name}: {failed.reason}", hint=f"{failed.reason.hint}; the detail is in {log}") from None


def _pool(spec: RunSpec, paths: Sequence[Path], folder: Path) -> Path:
    """All records in one dataset. A hash split goes by patient or record, so each stays on the side that it was on."""
    columns = TabularOptions.model_validate(spec.task.options).columns
    if spec.data.split is Split.HASH:
        return _join_tables(paths, columns, folder / "pooled.csv")
    pooled = folder / "pooled"
    make_private_dir(pooled)
    for part in ("train", "test"):
        parts = [next(path.glob(f"{part}.*"), path / f"{part}.csv") for path in paths]
        _join_tables(parts, columns, pooled / f"{part}.csv")
    return pooled


def _join_tables(paths: Sequence[Path], columns: tuple[str, ...], target: Path) -> Path:
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for path in paths:
            table = read_table(path, columns, str(path))
            writer.writerows(zip(*(table.cells[column] for column in columns), strict=True))
    return target
