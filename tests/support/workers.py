"""Worker groups on a small table or on no data at all, and what a test asks of their processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedplat.metrics import MetricSums, summarise
from fedplat.spec import parse_spec
from fedplat.spec.model import RunSpec
from fedplat.wire.http import Phase
from fedplat_silo.trainer import (
    TrainingPlan,
    TrainOrder,
    TrainResult,
    WorkerGroup,
)

SPEC = """
name = "test"
seed = 3
data = {{ name = "clinic", test_share = 0.25 }}
rounds = {{ count = 3 }}
model = {{ {model} }}
[task]
name = "tabular"
[task.options]
model = "mlp"
hidden = [8]
scaling = "local"
target = {{ column = "ill", categories = ["no", "yes"] }}
features = [
  {{ column = "age", kind = "numeric" }},
  {{ column = "sex", kind = "categorical", categories = ["f", "m"] }},
]
[training]
{training}
"""

ADD_CONSTANT = """
name = "test"
task = {{ name = "add_constant", options = {{ size = 1000, seconds = {seconds} }} }}
data = {{ name = "none" }}
rounds = {{ count = 3 }}
training = {{ epochs = 1 }}
"""


def tabular(training: str, model: str = "") -> RunSpec:
    return parse_spec(SPEC.format(training=training, model=model))


def add_constant(seconds: float) -> RunSpec:
    return parse_spec(ADD_CONSTANT.format(seconds=seconds))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "clinic.csv"
    random = np.random.default_rng(0)
    rows = ["age,sex,ill"]
    for _ in range(400):
        age, sex = random.normal(50, 10), random.choice(["f", "m"])
        rows.append(f"{age:.3f},{sex},{'yes' if age + 5 * (sex == 'm') + random.normal(0, 8) > 55 else 'no'}")
    path.write_text("\n".join(rows))
    return path


Make = Callable[..., WorkerGroup]


@pytest.fixture
def make(tmp_path: Path, data: Path) -> Iterator[Make]:
    """Makes groups that are closed at the end."""
    groups: list[WorkerGroup] = []

    def build(
        spec: RunSpec,
        num_workers: int = 1,
        on_progress: Callable[[Phase, float], None] = lambda phase, share: None,
        name: str = "run",
    ) -> WorkerGroup:
        plan = TrainingPlan(spec=spec, silo="a", data=data, run_dir=tmp_path / name, num_workers=num_workers)
        groups.append(WorkerGroup(plan, tmp_path / "silo.log", on_progress))
        return groups[-1]

    yield build
    for group in groups:
        group.close()


def three_rounds(group: WorkerGroup, mu: float = 0.0) -> list[TrainResult]:
    weights, results = group.initial_weights(), []
    for number in (1, 2, 3):
        result = group.train(TrainOrder(number, proximal_mu=mu, evaluate=True), weights)
        results.append(replace(result, update=result.update.copy()))
        weights = weights + results[-1].update
    return results


def loss(sums: MetricSums | None) -> float:
    assert sums is not None
    return summarise(sums)["loss"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def family(pid: int) -> set[int]:
    """The processes of the group that `pid` is in."""
    group = os.getpgid(pid)
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group:
                    found.add(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
