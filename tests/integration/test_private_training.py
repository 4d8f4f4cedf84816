"""Workers of a silo that train privately together: what comes out of them, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedplat.privacy import SampledGaussian, epsilon
from fedplat.privacy.planning import planned_event
from fedplat.reasons import Code
from fedplat.spec import RunSpec, parse_spec
from fedplat_silo.trainer import TrainingFailed, TrainingPlan, TrainOrder, WorkerGroup

SPEC = """
name = "private"
rounds = { count = 4 }
data = { name = "clinic", test_share = 0.25 }
strategy = { weighting = "uniform" }
[task]
name = "tabular"
[task.options]
target = { column = "ill", categories = ["no", "yes"] }
features = [{ column = "age", kind = "numeric", center = 50, scale = 10 }]
[training]
steps = 30
batch_size = 16
learning_rate = 2.0
[privacy]
mode = "record"
metrics = "unprotected"
epsilon = 8.0
delta = 1e-4
expected_batch_size = 40
"""


@pytest.fixture
def spec() -> RunSpec:
    return parse_spec(SPEC)


@pytest.fixture
def group(spec: RunSpec, tmp_path: Path) -> Iterator[WorkerGroup]:
    """Two workers over 400 records, whose age tells most of the outcome."""
    random = np.random.default_rng(0)
    ages = random.normal(50, 10, 400)
    rows = [f"{age:.2f},{'yes' if age + random.normal(0, 3) > 50 else 'no'}" for age in ages]
    path = tmp_path / "clinic.csv"
    path.write_text("age,ill\n" + "\n".join(rows))
    plan = TrainingPlan(spec=spec, silo="a", data=path, run_dir=tmp_path / "run", num_workers=2)
    with WorkerGroup(plan, tmp_path / "silo.log", lambda phase, share: None) as workers:
        yield workers


def test_two_workers_learn_within_the_budget(spec: RunSpec, group: WorkerGroup) -> None:
    ready = group.start()
    plan = planned_event(spec, ready.num_units)
    assert ready.num_units == ready.num_train
    released, weights, accuracy = list[SampledGaussian](), group.initial_weights(), 0.0
    for number in (1, 2, 3, 4):
        order = TrainOrder(number, evaluate=True, noise_multiplier=plan.noise_multiplier)
        result = group.train(order, weights)
        released += result.released
        weights = weights + result.update
        assert result.evaluated is not None
        confusion = result.evaluated.counts["confusion"]
        accuracy = (confusion[0] + confusion[3]) / sum(confusion)
    assert sum(event.num_steps for event in released) == plan.num_steps == 120
    assert epsilon(released, delta=1e-4) == epsilon([plan], delta=1e-4) <= 8.0
    assert accuracy > 0.8
    first = result.update.copy()
    again = group.train(order, weights - first)
    assert again.update.tobytes() != first.tobytes()  # neither samples nor noise are ever repeated


def test_a_round_without_noise_is_refused(group: WorkerGroup) -> None:
    weights = group.initial_weights()
    with pytest.raises(TrainingFailed) as refusal:
        group.train(TrainOrder(1), weights)
    assert refusal.value.reason.code is Code.PRIVACY
