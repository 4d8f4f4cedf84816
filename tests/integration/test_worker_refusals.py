"""What workers say, and do not say, where a task, its options, its data or its update is not good: real processes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedplat.reasons import Code
from fedplat.spec import parse_spec
from fedplat.spec.model import RunSpec
from fedplat_silo.trainer import (
    TrainingFailed,
    TrainingPlan,
    TrainOrder,
    WorkerGroup,
)
from tests.support.workers import (
    ADD_CONSTANT,
    Make,
    data,
    make,
    tabular,
)

__all__ = ["data", "make"]

SECRET = "patient-4711-has-gout"

TASK = """
from fedplat_silo.tasks.add_constant import AddConstant

class Bad(AddConstant):
    def load(self, source):
        if self.options.constant == 1:
            raise RuntimeError("cannot read the record of {secret}")
        return super().load(source)

    def train_round(self, work):
        if work.place.rank == 1 and self.options.constant == 2:
            raise ValueError("{secret}")
        torch.distributed.barrier()  # waits for the rank that has failed
"""


@pytest.fixture
def bad_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], RunSpec]:
    """A task in an installed package of its own, whose failures hold what nobody may see."""
    site = tmp_path / "site"
    (site / "clinic_tasks-1.2.dist-info").mkdir(parents=True)
    (site / "clinic_tasks-1.2.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: clinic-tasks\nVersion: 1.2\n"
    )
    (site / "clinic_tasks-1.2.dist-info/entry_points.txt").write_text("[fedplat.tasks]\nbad = clinic_tasks:Bad\n")
    (site / "clinic_tasks.py").write_text(TASK.replace("{secret}", SECRET))
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    text = ADD_CONSTANT.format(seconds=0).replace("add_constant", "bad")
    return lambda constant: parse_spec(text.replace("seconds = 0", f"constant = {constant}"))


@pytest.mark.parametrize(("num_workers", "constant", "phase"), [(1, 1.0, "preparing"), (2, 2.0, "training")])
def test_what_a_task_raises_stays_in_the_log(
    make: Make, bad_task: Callable[[float], RunSpec], tmp_path: Path, num_workers: int, constant: float, phase: str
) -> None:
    group = make(bad_task(constant), num_workers)
    with pytest.raises(TrainingFailed) as failure:
        group.train(TrainOrder(1), np.zeros(1000, dtype=np.float32))
    reason = failure.value.reason
    assert (reason.code, reason.words) == (Code.TASK_FAILED, {"phase": phase})
    assert SECRET not in f"{failure.value} {failure.value!r} {reason!r} {reason.hint}"
    log = tmp_path / "silo.log"
    assert SECRET in log.read_text()
    assert "clinic_tasks.py" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_an_update_that_is_not_finite_is_refused(make: Make) -> None:
    group = make(tabular("epochs = 1\nlearning_rate = 1e30"))
    with pytest.raises(TrainingFailed) as failure:
        group.train(TrainOrder(1), group.initial_weights())
    assert failure.value.reason.code is Code.UPDATE_NOT_FINITE


def test_an_update_above_the_limit_is_refused_and_the_next_round_goes_on(make: Make, tmp_path: Path) -> None:
    text = ADD_CONSTANT.format(seconds=0).replace("epochs = 1", "epochs = 1, max_update_norm = {limit}")
    norm = 1000**0.5  # each of 1000 weights by 1
    weights = np.zeros(1000, dtype=np.float32)
    strict = make(parse_spec(text.replace("{limit}", str(norm * 0.999))), name="strict")
    for number in (1, 2):
        with pytest.raises(TrainingFailed) as failure:
            strict.train(TrainOrder(number), weights)
        assert (failure.value.reason.code, failure.value.reason.words) == (Code.UPDATE_TOO_LARGE, {})
    lax = make(parse_spec(text.replace("{limit}", str(norm * 1.001))), name="lax")
    assert np.linalg.norm(lax.train(TrainOrder(1), weights).update) == pytest.approx(norm)


def test_data_and_options_are_refused_by_name(make: Make, tmp_path: Path, data: Path) -> None:
    data_without = tmp_path / "other.csv"
    data_without.write_text(data.read_text().replace("age", "alter", 1))
    plan = TrainingPlan(spec=tabular("epochs = 1"), silo="a", data=data_without, run_dir=tmp_path / "x")
    with WorkerGroup(plan, tmp_path / "log", lambda *_: None) as group:
        with pytest.raises(TrainingFailed) as failure:
            group.start()
        assert failure.value.reason.words == {"column": "age"}
        data_without.write_text(data.read_text())
        assert group.start().num_train == 292
