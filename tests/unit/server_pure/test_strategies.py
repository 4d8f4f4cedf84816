from __future__ import annotations

import copy
from collections.abc import Callable
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
from fedplat_server import vectors
from fedplat_server.aggregation import Update, WeightedMean
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.strategies import RunStrategy, StrategyState, _Nobody, make_strategy
from fedplat_server.vectors import StoredVector, blocks_of

MakeSpec = Callable[..., RunSpec]
MakeVector = Callable[..., Vector]
Stored = Callable[..., StoredVector]
Mean = Callable[[int], tuple[Vector, float]]

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


@pytest.fixture
def mean_of(vector: MakeVector, stored: Stored) -> Mean:
    """The mean update of a round, and its weight."""

    def make(round_number: int) -> tuple[Vector, float]:
        updates = [Update(s, n, stored(update(vector, round_number, i))) for i, (s, n) in enumerate(SILOS.items())]
        mean = WeightedMean(updates)
        return np.concatenate([block for _, block in mean.blocks()]), mean.total_weight

    return make


def steps(
    strategy: RunStrategy, mean_of: Mean, weights: Vector, state: StrategyState, first: int, last: int
) -> tuple[Vector, StrategyState]:
    for number in range(first, last + 1):
        weights, state = strategy.step(number, weights, *mean_of(number), state)
    return weights, state


def kept(theirs: FedAvg, layout: Layout) -> StrategyState:
    """What a stock strategy keeps, as flat vectors."""
    slots = {slot: getattr(theirs, slot, None) for slot in ("m_t", "v_t", "momentum_vector")}
    named = [p.name for p in layout.shared]
    flat = {slot: dict(zip(named, v, strict=True)) if isinstance(v, list) else v for slot, v in slots.items() if v}
    return {slot: layout.join(arrays) for slot, arrays in flat.items()}


def as_bytes(state: StrategyState) -> dict[str, bytes]:
    return {slot: vector.tobytes() for slot, vector in state.items()}


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
    case: str, layout: Layout, spec: MakeSpec, vector: MakeVector, mean_of: Mean
) -> None:
    options, make_stock = CASES[case]
    ours, theirs = make_strategy(spec(**options)), make_stock()
    weights = stock_weights = vector(seed=0)
    state: StrategyState = {}
    for number in range(1, NUM_ROUNDS + 1):
        weights, state = ours.step(number, weights, *mean_of(number), state)
        trained = [
            (record(layout, stock_weights + update(vector, number, i)), float(num))
            for i, num in enumerate(SILOS.values())
        ]
        sent = record(layout, stock_weights)
        stock_weights = flatten(layout, stock_step(theirs, number, sent, trained))
        np.testing.assert_allclose(weights, stock_weights, rtol=2e-5, atol=2e-6)
    assert np.abs(weights - vector(seed=0)).max() > 0.01


@every_case
@pytest.mark.parametrize("block", [1, 3, 7, 22, 1000])
@pytest.mark.usefixtures("task_identity")
def test_in_blocks_of_any_size_it_is_the_stock_strategy_on_the_whole_model_to_the_last_bit(
    case: str,
    block: int,
    layout: Layout,
    spec: MakeSpec,
    vector: MakeVector,
    mean_of: Mean,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vectors, "BLOCK", block)
    options, make_stock = CASES[case]
    ours, theirs = make_strategy(spec(**options)), make_stock()
    weights, state = vector(seed=0), dict[str, Vector]()
    for number in range(1, NUM_ROUNDS + 1):
        mean, total = mean_of(number)
        reply = (weights.astype(np.float64) + mean).astype(np.float32)
        if isinstance(theirs, stock.FedAvgM):
            theirs.current_arrays = None
        sent = record(layout, weights)
        expected = flatten(layout, stock_step(theirs, number, sent, [(record(layout, reply), total)]))
        parts = [
            ours.step(number, weights[at], mean[at], total, {slot: old[at] for slot, old in state.items()})
            for at in blocks_of(layout.size)
        ]
        weights = np.concatenate([new for new, _ in parts])
        state = {slot: np.concatenate([after[slot] for _, after in parts]) for slot in parts[0][1]}
        assert weights.tobytes() == expected.tobytes()
        assert as_bytes(state) == as_bytes(kept(theirs, layout))


@every_case
@pytest.mark.parametrize("saved_after", [1, 3])
def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    case: str,
    saved_after: int,
    layout: Layout,
    spec: MakeSpec,
    vector: MakeVector,
    mean_of: Mean,
    tmp_path: Path,
) -> None:
    options, _ = CASES[case]
    expected, expected_state = steps(make_strategy(spec(**options)), mean_of, vector(seed=0), {}, 1, NUM_ROUNDS)

    weights, state = steps(make_strategy(spec(**options)), mean_of, vector(seed=0), {}, 1, saved_after)
    with Checkpoints(tmp_path / "c", "0" * 64).write(saved_after, layout) as writer:
        writer.add(weights, state)
        writer.commit()

    found = Checkpoints(tmp_path / "c", "0" * 64).load(saved_after)
    state = {slot: old.vector() for slot, old in found.state.items()}
    after = make_strategy(spec(**options))
    weights, state = steps(after, mean_of, found.weights.vector(), state, saved_after + 1, NUM_ROUNDS)
    assert weights.tobytes() == expected.tobytes()
    assert as_bytes(state) == as_bytes(expected_state)


@every_case
def test_the_state_is_everything_that_a_step_changes(
    case: str, spec: MakeSpec, vector: MakeVector, mean_of: Mean
) -> None:
    strategy = make_strategy(spec(**CASES[case][0]))
    before = copy.copy(vars(strategy._strategy))
    _, state = strategy.step(1, vector(seed=0), *mean_of(1))
    changed = {name for name, value in vars(strategy._strategy).items() if value is not before.get(name)}
    assert changed - {"current_arrays"} == state.keys()


@every_case
def test_a_step_depends_on_what_it_is_given_and_on_nothing_else(
    case: str, spec: MakeSpec, vector: MakeVector, mean_of: Mean
) -> None:
    """Not on the last step, of another block, of another round, or one that failed in the middle."""
    options, _ = CASES[case]
    used, fresh = make_strategy(spec(**options)), make_strategy(spec(**options))
    _, given = used.step(1, vector(seed=0), *mean_of(1))
    copied = {slot: old.copy() for slot, old in given.items()}
    for other in (vector(seed=7), vector(seed=7)[:5]):
        used.step(9, other, np.ones_like(other), 3.0, {slot: old[: len(other)] for slot, old in given.items()})
    with pytest.raises(FedplatError):
        used.step(2, vector(seed=8), np.full(22, np.inf, np.float32), 1.0, given)
    mean, total = mean_of(2)
    weights, state = used.step(2, vector(seed=3), mean, total, given)
    expected, expected_state = fresh.step(2, vector(seed=3), mean, total, copied)
    assert weights.tobytes() == expected.tobytes()
    assert as_bytes(state) == as_bytes(expected_state)
    assert as_bytes(given) == as_bytes(copied), "what is given is not written to: it may lie in a file"


def test_fedavg_is_weights_plus_mean_rounded_once(layout: Layout, spec: MakeSpec, vector: MakeVector) -> None:
    weights = vector(seed=0)
    mean = np.random.default_rng(1).normal(size=layout.size)
    new, state = make_strategy(spec()).step(1, weights, mean, 3.0)
    assert new.tobytes() == (weights.astype(np.float64) + mean).astype(np.float32).tobytes()
    assert state == {}


def test_fedprox_tells_the_silos_its_mu_and_fedavg_nothing(spec: MakeSpec) -> None:
    fedprox = make_strategy(spec(name="fedprox", proximal_mu=0.25))
    assert fedprox.configure(4) == {"server-round": 4, "proximal-mu": 0.25}
    assert make_strategy(spec(name="fedprox")).configure(1)["proximal-mu"] == 0.0
    assert make_strategy(spec()).configure(4) == {"server-round": 4}


@every_case
def test_configuring_does_not_change_a_step(case: str, spec: MakeSpec, vector: MakeVector, mean_of: Mean) -> None:
    asked, silent = (make_strategy(spec(**CASES[case][0])) for _ in range(2))
    weights = other = vector(seed=0)
    state: StrategyState = {}
    other_state: StrategyState = {}
    for r in (1, 2):
        asked.configure(r)
        weights, state = asked.step(r, weights, *mean_of(r), state)
        other, other_state = silent.step(r, other, *mean_of(r), other_state)
    assert weights.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", StrategyName)
def test_every_option_of_a_spec_reaches_the_strategy(name: StrategyName, spec: MakeSpec) -> None:
    for option in STRATEGY_OPTIONS[name]:
        default = make_strategy(spec(name=name))._strategy
        chosen = make_strategy(spec(name=name, **{option: 0.125}))._strategy
        assert [vars(chosen)[k] for k in vars(chosen) if vars(chosen)[k] != vars(default).get(k)][:1] == [0.125]


@pytest.mark.parametrize("name", StrategyName)
def test_a_model_that_is_no_longer_finite_is_an_error(name: StrategyName, layout: Layout, spec: MakeSpec) -> None:
    huge = np.full(layout.size, 3e38, dtype=np.float32)
    with pytest.raises(FedplatError, match="round 3 is no longer finite"):
        make_strategy(spec(name=name)).step(3, huge, huge, 1.0)


@pytest.mark.parametrize("length", [1, 21])
def test_vectors_of_another_length_are_refused(length: int, spec: MakeSpec, vector: MakeVector) -> None:
    with pytest.raises(LayoutError, match="do not fit together"):
        make_strategy(spec()).step(1, vector(seed=0), np.zeros(length), 1.0)


@pytest.mark.parametrize("case", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_state_of_another_length_is_refused(case: str, spec: MakeSpec, vector: MakeVector) -> None:
    strategy = make_strategy(spec(**CASES[case][0]))
    _, state = strategy.step(1, vector(seed=0), vector(seed=1), 1.0)
    for length in (1, 21):
        with pytest.raises(LayoutError, match="do not fit together"):
            strategy.step(2, vector(seed=0), vector(seed=1), 1.0, {slot: old[:length] for slot, old in state.items()})


def test_the_state_of_another_strategy_is_refused(spec: MakeSpec, vector: MakeVector) -> None:
    momentum = make_strategy(spec(name="fedavgm", momentum=0.9))
    _, state = momentum.step(1, vector(seed=0), vector(seed=1), 1.0)
    for name in ("fedadam", "fedavg"):
        with pytest.raises(LayoutError, match="another strategy"):
            make_strategy(spec(name=name)).step(2, vector(seed=0), vector(seed=1), 1.0, state)
