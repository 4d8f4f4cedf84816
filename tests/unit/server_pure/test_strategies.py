from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedplat.errors import FedplatError, LayoutError
from fedplat.params import Layout, Vector
from fedplat.spec.model import STRATEGY_OPTIONS, RunSpec, StrategyName
from fedplat_server.aggregation import Update, weighted_mean
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.strategies import _Nobody, make_strategy

MakeSpec = Callable[..., RunSpec]
MakeVector = Callable[..., Vector]

CASES: dict[str, tuple[dict[str, object], Callable[[], FedAvg]]] = {
    "fedavg": ({"name": "fedavg"}, stock.FedAvg),
    "fedprox": ({"name": "fedprox", "proximal_mu": 0.1}, lambda: stock.FedProx(proximal_mu=0.1)),
    "fedavgm, defaults": ({"name": "fedavgm"}, stock.FedAvgM),
    "fedavgm": (
        {"name": "fedavgm", "learning_rate": 0.7, "momentum": 0.9},
        lambda: stock.FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
    ),
    "fedadam, defaults": ({"name": "fedadam"}, stock.FedAdam),
    "fedadam": (
        {"name": "fedadam", "learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01},
        lambda: stock.FedAdam(eta=0.02, beta_1=0.8, beta_2=0.95, tau=0.01),
    ),
    "fedyogi, defaults": ({"name": "fedyogi"}, stock.FedYogi),
    "fedyogi": (
        {"name": "fedyogi", "learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01},
        lambda: stock.FedYogi(eta=0.02, beta_1=0.8, beta_2=0.95, tau=0.01),
    ),
    "fedadagrad, defaults": ({"name": "fedadagrad"}, stock.FedAdagrad),
    "fedadagrad": (
        {"name": "fedadagrad", "learning_rate": 0.02, "tau": 0.01},
        lambda: stock.FedAdagrad(eta=0.02, tau=0.01),
    ),
}
SILOS = {"a": 130, "b": 77, "c": 1}
NUM_ROUNDS = 5

every_case = pytest.mark.parametrize("case", CASES)


class Nodes(_Nobody):
    def get_node_ids(self) -> tuple[int, ...]:
        return tuple(range(len(SILOS)))


@pytest.fixture
def task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock strategies make messages, and those want this; ours must do without."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def update(vector: MakeVector, round_number: int, silo: int) -> Vector:
    return vector(seed=100 * round_number + silo, scale=0.1)


def mean_of_round(vector: MakeVector, round_number: int) -> tuple[Vector, float]:
    updates = [Update(s, n, update(vector, round_number, i)) for i, (s, n) in enumerate(SILOS.items())]
    return weighted_mean(updates)


def stock_step(
    strategy: FedAvg, round_number: int, sent: ArrayRecord, trained: list[tuple[ArrayRecord, float]]
) -> ArrayRecord:
    messages = list(strategy.configure_train(round_number, sent, ConfigRecord(), Nodes()))
    replies = [
        Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": weight})}), reply_to=message)
        for message, (arrays, weight) in zip(messages, trained, strict=False)
    ]
    arrays, _ = strategy.aggregate_train(round_number, replies)
    assert arrays is not None
    return arrays


def record(layout: Layout, flat: Vector) -> ArrayRecord:
    return ArrayRecord({name: Array(view) for name, view in layout.split(flat).items()})


def flatten(layout: Layout, arrays: ArrayRecord) -> Vector:
    return layout.join({name: array.numpy() for name, array in arrays.items()})


@every_case
@pytest.mark.usefixtures("task_identity")
def test_it_learns_what_the_stock_strategy_learns_from_single_replies(
    case: str, layout: Layout, spec: MakeSpec, vector: MakeVector
) -> None:
    options, make_stock = CASES[case]
    ours, theirs = make_strategy(spec(**options), layout), make_stock()
    weights = stock_weights = vector(seed=0)
    for round_number in range(1, NUM_ROUNDS + 1):
        weights = ours.step(round_number, weights, *mean_of_round(vector, round_number))
        trained = [
            (record(layout, stock_weights + update(vector, round_number, i)), float(num))
            for i, num in enumerate(SILOS.values())
        ]
        sent = record(layout, stock_weights)
        stock_weights = flatten(layout, stock_step(theirs, round_number, sent, trained))
        np.testing.assert_allclose(weights, stock_weights, rtol=2e-5, atol=2e-6)
    assert np.abs(weights - vector(seed=0)).max() > 0.01


@every_case
@pytest.mark.usefixtures("task_identity")
def test_it_is_the_stock_strategy_to_the_last_bit_for_the_same_virtual_reply(
    case: str, layout: Layout, spec: MakeSpec, vector: MakeVector
) -> None:
    options, make_stock = CASES[case]
    ours, theirs = make_strategy(spec(**options), layout), make_stock()
    weights = vector(seed=0)
    for round_number in range(1, NUM_ROUNDS + 1):
        mean, total = mean_of_round(vector, round_number)
        reply = (weights.astype(np.float64) + mean).astype(np.float32)
        trained = [(record(layout, reply), total)]
        if isinstance(theirs, stock.FedAvgM):
            theirs.current_arrays = None
        expected = flatten(layout, stock_step(theirs, round_number, record(layout, weights), trained))
        weights = ours.step(round_number, weights, mean, total)
        assert weights.tobytes() == expected.tobytes()


@every_case
@pytest.mark.parametrize("saved_after", [0, 1, 3])
def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    case: str, saved_after: int, layout: Layout, spec: MakeSpec, vector: MakeVector, tmp_path: Path
) -> None:
    options, _ = CASES[case]

    def rounds(first: int, last: int) -> Iterator[tuple[int, Vector, float]]:
        return ((r, *mean_of_round(vector, r)) for r in range(first, last + 1))

    undisturbed = make_strategy(spec(**options), layout)
    expected = weights = vector(seed=0)
    for r, mean, total in rounds(1, NUM_ROUNDS):
        expected = undisturbed.step(r, expected, mean, total)

    before = make_strategy(spec(**options), layout)
    for r, mean, total in rounds(1, saved_after):
        weights = before.step(r, weights, mean, total)
    Checkpoints(tmp_path, "0" * 64).save(saved_after, weights, layout, before.state())

    found = Checkpoints(tmp_path, "0" * 64).load(saved_after)
    after, weights = make_strategy(spec(**options), found.layout), found.weights
    after.restore(found.strategy_state)
    for r, mean, total in rounds(saved_after + 1, NUM_ROUNDS):
        weights = after.step(r, weights, mean, total)
    assert weights.tobytes() == expected.tobytes()
    for name, array in undisturbed.state().items():
        assert array.tobytes() == after.state()[name].tobytes(), name


@every_case
def test_the_state_is_everything_that_a_step_changes(
    case: str, layout: Layout, spec: MakeSpec, vector: MakeVector
) -> None:
    strategy = make_strategy(spec(**CASES[case][0]), layout)
    before = copy.copy(vars(strategy._strategy))
    strategy.step(1, vector(seed=0), *mean_of_round(vector, 1))
    changed = {name for name, value in vars(strategy._strategy).items() if value is not before.get(name)}
    assert changed - {"current_arrays"} == {name.split("/")[0] for name in strategy.state()}


@every_case
def test_a_step_starts_from_the_weights_that_it_is_given(
    case: str, layout: Layout, spec: MakeSpec, vector: MakeVector
) -> None:
    """Not from those of its last step: after a restore, or a start from other weights, they differ."""
    options, _ = CASES[case]
    first, second = make_strategy(spec(**options), layout), make_strategy(spec(**options), layout)
    first.step(1, vector(seed=0), *mean_of_round(vector, 1))
    second.step(1, vector(seed=0), *mean_of_round(vector, 1))
    mean, total = mean_of_round(vector, 2)
    near = first.step(2, vector(seed=7), mean, total) - vector(seed=7)
    far = second.step(2, vector(seed=7) + 8, mean, total) - (vector(seed=7) + 8)
    np.testing.assert_allclose(near, far, atol=1e-5)


def test_fedavg_is_weights_plus_mean_rounded_once(layout: Layout, spec: MakeSpec, vector: MakeVector) -> None:
    weights = vector(seed=0)
    mean = np.random.default_rng(1).normal(size=layout.size)
    new = make_strategy(spec(), layout).step(1, weights, mean, 3.0)
    assert new.tobytes() == (weights.astype(np.float64) + mean).astype(np.float32).tobytes()


def test_fedprox_tells_the_silos_its_mu_and_fedavg_nothing(layout: Layout, spec: MakeSpec) -> None:
    fedprox = make_strategy(spec(name="fedprox", proximal_mu=0.25), layout)
    assert fedprox.configure(4) == {"server-round": 4, "proximal-mu": 0.25}
    assert make_strategy(spec(name="fedprox"), layout).configure(1)["proximal-mu"] == 0.0
    assert make_strategy(spec(), layout).configure(4) == {"server-round": 4}


@every_case
def test_configuring_does_not_change_a_step(case: str, layout: Layout, spec: MakeSpec, vector: MakeVector) -> None:
    asked, silent = (make_strategy(spec(**CASES[case][0]), layout) for _ in range(2))
    weights = other = vector(seed=0)
    for r in (1, 2):
        asked.configure(r)
        weights = asked.step(r, weights, *mean_of_round(vector, r))
        other = silent.step(r, other, *mean_of_round(vector, r))
    assert weights.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", StrategyName)
def test_every_option_of_a_spec_reaches_the_strategy(name: StrategyName, layout: Layout, spec: MakeSpec) -> None:
    for option in STRATEGY_OPTIONS[name]:
        default = make_strategy(spec(name=name), layout)._strategy
        chosen = make_strategy(spec(name=name, **{option: 0.125}), layout)._strategy
        assert [vars(chosen)[k] for k in vars(chosen) if vars(chosen)[k] != vars(default).get(k)][:1] == [0.125]


def test_a_model_that_is_no_longer_finite_is_an_error(layout: Layout, spec: MakeSpec, vector: MakeVector) -> None:
    huge = np.full(layout.size, 3e38, dtype=np.float32)
    for name in StrategyName:
        with pytest.raises(FedplatError, match="round 3 is no longer finite"):
            make_strategy(spec(name=name), layout).step(3, huge, huge, 1.0)


def test_vectors_of_another_length_are_refused(layout: Layout, spec: MakeSpec, vector: MakeVector) -> None:
    strategy = make_strategy(spec(), layout)
    with pytest.raises(LayoutError, match="do not fit a layout of 22"):
        strategy.step(1, vector(seed=0), np.zeros(1), 1.0)
    with pytest.raises(LayoutError, match="do not fit a layout of 22"):
        strategy.step(1, vector(seed=0)[1:], np.zeros(21), 1.0)


def test_the_state_of_another_strategy_is_refused(layout: Layout, spec: MakeSpec, vector: MakeVector) -> None:
    momentum = make_strategy(spec(name="fedavgm", momentum=0.9), layout)
    momentum.step(1, vector(seed=0), vector(seed=1), 1.0)
    for name in ("fedadam", "fedavg"):
        with pytest.raises(LayoutError, match="another strategy"):
            make_strategy(spec(name=name), layout).restore(momentum.state())
