"""What is refused before a model is trained privately, each by name; and what a session makes of a private run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedplat.metrics import MetricSums
from fedplat.privacy.planning import planned_event
from fedplat.spec.model import RunSpec
from fedplat_silo.data.errors import Refused
from fedplat_silo.trainer.ddp import Place
from fedplat_silo.trainer.dp.bookkeeping import Bookkeeping
from fedplat_silo.trainer.dp.preparing import prepare
from fedplat_silo.trainer.group import released_by
from fedplat_silo.trainer.loop import LocalRound
from fedplat_silo.trainer.messages import Command
from fedplat_silo.trainer.plan import TrainingPlan
from fedplat_silo.trainer.session import Session
from tests.unit.dp.world import Toy, make_examples, make_spec, mlp

Make = Callable[[], nn.Module]


def refusal(model: nn.Module, task: Toy | None = None, spec: RunSpec | None = None) -> str:
    spec = spec or make_spec()
    with pytest.raises(Refused) as found:
        prepare(task or Toy(spec), model, make_examples(), spec)
    return str(found.value)


class InBatch(nn.Module):
    """Compares each record with the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x - x.mean(0))
        return out


class Counting(nn.Module):
    """Remembers, in a buffer, what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(5))
        self.a = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += x.detach().sum(0)
        out: Tensor = self.a(x)
        return out


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Counting()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(self.inner(x))
        return out


def between(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), layer, nn.Linear(6, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: between(nn.BatchNorm1d(6)), "BatchNorm cannot support"),
        (lambda: between(nn.BatchNorm1d(6, affine=False)), "1 is a BatchNorm1d"),
        (lambda: between(nn.BatchNorm1d(6, affine=False, track_running_stats=False)), "1 is a BatchNorm1d"),
        (lambda: between(nn.InstanceNorm1d(6, track_running_stats=True)), "1 is a InstanceNorm1d"),
        (Wrapped, "changes the buffer 'inner.seen'"),
        (InBatch, "cannot be taken apart by record"),
        (lambda: mlp().requires_grad_(False), "no parameter learns"),
        (lambda: mlp().half(), "must all be float32"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.LSTM(4, 4)), "LSTM"),
    ],
)  # fmt: skip
def test_models_that_mix_or_remember_records_are_refused_by_name(make: Make, words: str) -> None:
    assert words in refusal(make())


def test_group_norm_and_instance_norm_without_memory_pass() -> None:
    for layer in (nn.GroupNorm(2, 6), nn.LayerNorm(6)):
        assert prepare(Toy(make_spec()), between(layer), make_examples(), make_spec()).engine is Bookkeeping


class OwnLoop(Toy):
    def train_round(self, work: LocalRound) -> MetricSums:
        raise NotImplementedError


def test_a_task_with_a_loop_of_its_own_is_refused() -> None:
    assert "training loop of its own" in refusal(mlp(), OwnLoop(make_spec()))


def test_patients_without_a_key_are_refused() -> None:
    assert "no patient key" in refusal(mlp(), spec=make_spec(privacy={"unit": "patient"}))


def test_a_spec_that_came_unchecked_is_refused() -> None:
    spec = make_spec().model_copy(
        update={"strategy": make_spec().strategy.model_copy(update={"weighting": "examples"})}
    )
    assert "weighting" in refusal(mlp(), spec=spec)


@pytest.mark.parametrize("noise", [None, 0.0, float("nan"), -1.0])
def test_no_round_without_noise(noise: float | None) -> None:
    prepared = prepare(Toy(make_spec()), mlp(), make_examples(), make_spec())
    with pytest.raises(Refused, match="without a noise multiplier"):
        prepared.terms(noise)


def test_the_model_is_left_as_it_was() -> None:
    model = mlp()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    prepare(Toy(make_spec()), model, make_examples(), make_spec())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


SPEC = {
    "task": {
        "name": "tabular",
        "options": {
            "target": {"column": "ill", "categories": ["no", "yes"]},
            "features": [{"column": "age", "kind": "numeric", "center": 50, "scale": 10}],
        },
    },
    "data": {"name": "clinic", "test_share": 0.25},
}


def clinic(tmp_path: Path) -> Path:
    path = tmp_path / "clinic.csv"
    rows = [f"{20 + i % 60},no,p{i // 3}" for i in range(120)]
    path.write_text("age,ill,patient\n" + "\n".join(rows) + "\n")
    return path


def open_session(tmp_path: Path, patient: bool = False, **privacy: object) -> Session:
    options = {**SPEC["task"]["options"], **({"patient": "patient"} if patient else {})}  # type: ignore[index]
    task = {"name": "tabular", "options": options}
    spec = make_spec(privacy=dict(privacy), **(SPEC | {"task": task}))
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    plan = TrainingPlan(spec=spec, silo="a", data=clinic(tmp_path), run_dir=run_dir)
    return Session(plan, Place(), lambda phase, share: None)


@pytest.mark.parametrize("metrics", ["none", "noised", "unprotected"])
def test_a_session_trains_privately_and_says_what_it_released(tmp_path: Path, metrics: str) -> None:
    noise = {"metrics_noise_multiplier": 9.0} if metrics == "noised" else {}
    session = open_session(tmp_path, metrics=metrics, noise_multiplier=1.5, **noise)
    prepared = session.prepared()
    assert prepared.num_units == prepared.num_train > 60
    assert prepared.warnings == ()  # that there is one class only is a fact of the data
    size = session.layout.size
    weights, out = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.float32)
    done = session.train(Command(kind="train", round=1, evaluate=True, noise_multiplier=1.5), weights, out)
    assert (done.num_private_steps, done.noise_multiplier) == (3, 1.5)
    assert done.sampling_rate == pytest.approx(4 / prepared.num_units)
    assert np.abs(out).max() > 0
    assert done.trained is not None
    assert (done.trained.num_examples == 0) is (metrics != "unprotected")
    assert done.metrics_noise_multiplier == noise.get("metrics_noise_multiplier", 0.0)
    assert len(released_by(done)) == (2 if metrics == "noised" else 1)
    if metrics == "none":
        assert done.evaluated is None
        assert session.evaluate(Command(kind="evaluate", round=1), weights).evaluated is None
    else:
        assert done.evaluated is not None
        assert done.evaluated.num_examples == prepared.num_test
        assert done.evaluated.noised is (metrics == "noised")


def test_a_session_counts_patients(tmp_path: Path) -> None:
    prepared = open_session(tmp_path, patient=True).prepared()
    assert prepared.num_train == 3 * prepared.num_units


def test_a_private_session_trains_nothing_without_noise(tmp_path: Path) -> None:
    session = open_session(tmp_path)
    vectors = [np.zeros(session.layout.size, dtype=np.float32) for _ in range(2)]
    with pytest.raises(Refused, match="without a noise multiplier"):
        session.train(Command(kind="train", round=1), *vectors)


def test_the_plan_is_what_the_rounds_add_up_to() -> None:
    spec = make_spec(training={"steps": None, "epochs": 2, "batch_size": 8}, privacy={"expected_batch_size": 6})
    prepared = prepare(Toy(spec), mlp(), make_examples(), spec)
    event, terms = planned_event(spec, 30), prepared.terms(1.0)
    assert (terms.sampling_rate, terms.num_steps, terms.expected_batch_size) == (0.2, 10, 6)
    assert (event.sampling_rate, event.num_steps) == (0.2, 2 * 10)
    assert event.noise_multiplier == 1.0
