"""The training loop against calculations by hand, and the slices of many ranks against one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedplat.reasons import Code
from fedplat.spec.model import RunSpec, TrainingSection
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.examples import ItemExamples, TensorExamples
from fedplat_silo.tasks.tabular import Tabular
from fedplat_silo.trainer.ddp import Place
from fedplat_silo.trainer.local import LocalStore
from fedplat_silo.trainer.loop import LocalRound, evaluate, global_batches, my_slice, train_batches
from fedplat_silo.trainer.session import find_layout, hash_tensors

ALONE = Place()
MakeSpec = Callable[..., RunSpec]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_round(model: nn.Module, spec: RunSpec, place: Place = ALONE, mu: float = 0.0) -> LocalRound:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(20, 3, generator=generator)
    targets = torch.randint(0, 2, (20,), generator=generator)
    weights = 1.0 + 2.0 * targets
    received = {name: p.detach().clone() for name, p in model.named_parameters()}
    examples = TensorExamples(inputs, targets, weights)
    return LocalRound(model, examples, spec.training, 5, place, received, mu, lambda share: None)


def test_batches_cover_every_epoch_and_depend_on_the_seed_alone() -> None:
    training = TrainingSection(epochs=3, batch_size=4)
    batches = list(global_batches(10, training, seed=1))
    assert [len(b) for _, b in batches] == [4, 4, 2] * 3
    for epoch in range(3):
        seen = np.concatenate([b for _, b in batches[3 * epoch : 3 * epoch + 3]])
        assert sorted(seen.tolist()) == list(range(10))
    assert batches[0][1].tolist() != batches[3][1].tolist()
    assert batches[-1][0] == 1.0
    again, other = (list(global_batches(10, training, seed)) for seed in (1, 2))
    assert [b.tolist() for _, b in again] == [b.tolist() for _, b in batches]
    assert [b.tolist() for _, b in other] != [b.tolist() for _, b in batches]


def test_steps_run_on_over_epochs() -> None:
    batches = list(global_batches(10, TrainingSection(steps=5, batch_size=4), seed=1))
    epochs = list(global_batches(10, TrainingSection(epochs=2, batch_size=4), seed=1))
    assert [b.tolist() for _, b in batches] == [b.tolist() for _, b in epochs[:5]]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_slices_are_the_global_batch_and_weigh_one(make_spec: MakeSpec, num_ranks: int, size: int) -> None:
    model, batch = nn.Linear(3, 1), np.arange(3, 3 + size)
    works = [make_round(model, make_spec(), Place(r, num_ranks)) for r in range(num_ranks)]
    slices = [my_slice(work, batch) for work in works]
    whole = works[0].examples.fetch(torch.from_numpy(batch))[0]
    assert torch.equal(torch.cat([inputs[:real] for inputs, _, _, real in slices]), whole)
    assert sum(float(w.sum()) for _, _, w, _ in slices) == pytest.approx(1)
    assert all(len(inputs) >= 1 for inputs, _, _, _ in slices)


def gradients(model: nn.Module, task: Tabular, work: LocalRound, batch: np.ndarray) -> list[Tensor]:
    inputs, targets, weights, _ = my_slice(work, batch)
    model.zero_grad()
    (task.loss(model, inputs, targets)[1] * weights).sum().backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("size", [2, 7])
def test_gradients_of_all_ranks_add_up_to_the_weighted_mean(make_spec: MakeSpec, size: int) -> None:
    task, batch = Tabular(make_spec()), np.arange(size)
    model = task.build_model()
    parts = [gradients(model, task, make_round(model, make_spec(), Place(r, 3)), batch) for r in range(3)]
    work = make_round(model, make_spec())
    inputs, targets = work.examples.fetch(torch.from_numpy(batch))
    model.zero_grad()
    losses, weights = task.loss(model, inputs, targets)[1], work.examples.weights[batch]
    ((losses * weights).sum() / weights.sum()).backward()  # type: ignore[no-untyped-call]
    for parameter, *of_ranks in zip(model.parameters(), *parts, strict=True):
        torch.testing.assert_close(sum(of_ranks), parameter.grad)


def test_fedprox_pulls_towards_the_received_weights(make_spec: MakeSpec) -> None:
    """Two SGD steps on the full batch, by hand: g + mu (w - w0)."""
    spec, mu, rate = make_spec(training="epochs = 2\nbatch_size = 20\nlearning_rate = 0.5"), 0.7, 0.5
    task = Tabular(spec)
    model = task.build_model()
    work = make_round(model, spec, mu=mu)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    expected = {n: p.clone().requires_grad_() for n, p in start.items()}
    inputs, targets = work.examples.fetch(torch.arange(20))
    share = work.examples.weights / work.examples.weights.sum()
    for _ in range(2):
        losses = nn.functional.binary_cross_entropy_with_logits(
            (inputs @ expected["0.weight"].T + expected["0.bias"]).squeeze(1), targets.float(), reduction="none"
        )
        found = torch.autograd.grad((losses * share).sum(), list(expected.values()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(expected.items(), found, strict=True):
                parameter -= rate * (gradient + mu * (parameter - start[name]))
    train_batches(task, work)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected[name])


def test_clipping_bounds_the_step(make_spec: MakeSpec) -> None:
    spec = make_spec(training="steps = 1\nbatch_size = 20\nlearning_rate = 1.0\ngradient_clip = 0.001")
    task = Tabular(spec)
    model = task.build_model()
    work = make_round(model, spec)
    train_batches(task, work)
    moved = torch.cat([(p.detach() - work.received[n]).flatten() for n, p in model.named_parameters()])
    assert float(moved.norm()) == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimisers_lower_the_loss(make_spec: MakeSpec, optimizer: str) -> None:
    spec = make_spec(training=f'epochs = 30\nbatch_size = 5\nlearning_rate = 0.05\noptimizer = "{optimizer}"')
    task = Tabular(spec)
    model = task.build_model()
    work = make_round(model, spec)

    def measure() -> float:
        return evaluate(task, model, work.examples, spec.training, ALONE, work.report).totals["loss"]

    before = measure()
    assert train_batches(task, work).num_examples == 30 * 20
    assert measure() < before


def test_each_record_is_evaluated_once_whatever_the_number_of_ranks(make_spec: MakeSpec) -> None:
    task = Tabular(make_spec())
    model = task.build_model()
    work = make_round(model, make_spec())
    sums = [
        evaluate(task, model, work.examples, work.training, Place(r, 27), work.report)
        for r in range(27)  # more ranks than the 20 records
    ]
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    one = evaluate(task, model, work.examples, work.training, ALONE, work.report)
    assert total.counts == one.counts
    assert total.totals == pytest.approx(one.totals)


def test_divergence_is_named(make_spec: MakeSpec) -> None:
    task = Tabular(make_spec())
    model = task.build_model()
    nn.init.constant_(next(model.parameters()), float("nan"))
    with pytest.raises(Refused) as refusal:
        train_batches(task, make_round(model, make_spec()))
    assert refusal.value.reason.code is Code.UPDATE_NOT_FINITE


def test_items_of_a_torch_dataset_are_stacked() -> None:
    items = ItemExamples([(torch.full((2,), float(i)), torch.tensor(i)) for i in range(4)])
    inputs, targets = items.fetch(torch.tensor([3, 1]))
    assert (inputs.tolist(), targets.tolist()) == ([[3, 3], [1, 1]], [3, 1])
    assert len(items) == 4


def test_local_parameters_of_the_newest_two_states_are_kept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.newest_before(9) == 0
    for number in (1, 2, 5):
        store.save(number, {"head": torch.full((2,), float(number))})
    assert [store.newest_before(n) for n in (2, 5, 6)] == [0, 2, 5]
    assert store.load(2)["head"].tolist() == [2, 2]
    assert [p.stat().st_mode & 0o777 for p in tmp_path.iterdir()] == [0o600, 0o600]


def test_integer_buffers_are_local_and_bad_groups_are_refused(make_spec: MakeSpec) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    layout = find_layout(model, make_spec())
    assert [p.name for p in layout.shared] == [
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
    ]  # fmt: skip
    with pytest.raises(Refused) as refusal:
        find_layout(model, make_spec(model='local = ["head.*"]'))
    assert refusal.value.reason.code is Code.LAYOUT


def test_frozen_hash_depends_on_bytes_and_order() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3])
    assert hash_tensors([]) == ""
    assert len({hash_tensors(t) for t in ([a], [b], [a, b], [b, a], [a.double()])}) == 5
    assert hash_tensors([a.t()]) == hash_tensors([a.clone()])
