"""The server's step, by the stock Flower strategies.

However the silos' updates were summed, a strategy sees one reply: the global weights plus the mean update, with the
total weight. So every averaging strategy works unchanged, with secure aggregation as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Never

import numpy as np
import numpy.typing as npt
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from fedplat.errors import FedplatError, LayoutError
from fedplat.params import Vector
from fedplat.spec.model import RunSpec, StrategyName

StrategyState = Mapping[str, Vector]
"""What a strategy keeps from round to round, by slot (`m_t`): flat vectors in the order of the weights."""

_WHOLE = "weights"  # all parameters, or a block of them, are one array for the strategy: its steps are element-wise


@dataclass(frozen=True)
class _Stock:
    """A Flower strategy: what it calls our options, and the attributes in which it keeps its state."""

    strategy: type[FedAvg]
    options: Mapping[str, str]
    slots: tuple[str, ...] = ()


_ADAPTIVE = {"learning_rate": "eta", "beta_1": "beta_1", "beta_2": "beta_2", "tau": "tau"}
_STOCK = {
    StrategyName.FEDAVG: _Stock(FedAvg, {}),
    StrategyName.FEDPROX: _Stock(FedProx, {"proximal_mu": "proximal_mu"}),
    StrategyName.FEDAVGM: _Stock(
        FedAvgM, {"learning_rate": "server_learning_rate", "momentum": "server_momentum"}, ("momentum_vector",)
    ),
    StrategyName.FEDADAM: _Stock(FedAdam, _ADAPTIVE, ("m_t", "v_t")),
    StrategyName.FEDYOGI: _Stock(FedYogi, _ADAPTIVE, ("m_t", "v_t")),
    StrategyName.FEDADAGRAD: _Stock(FedAdagrad, {"learning_rate": "eta", "tau": "tau"}, ("m_t", "v_t")),
}
_LISTS = {"momentum_vector"}  # without names
_AVERAGES = (FedAvg, FedProx)  # of one reply they make that reply: the passes over a big model are saved


class NotFiniteError(FedplatError):
    """A step that leads to weights that are no numbers."""


class RunStrategy:
    """The strategy of one run. A step depends on what it is given and on nothing else, so it can be taken block by
    block: all strategies here are element-wise."""

    def __init__(self, strategy: FedAvg, slots: tuple[str, ...]) -> None:
        self._strategy = strategy
        self._slots = slots

    def configure(self, round_number: int) -> dict[str, ConfigRecordValues]:
        """What the strategy wants every silo to know, such as FedProx's `proximal-mu`."""
        return dict(self._begin(round_number, ArrayRecord()))

    def step(
        self,
        round_number: int,
        weights: Vector,
        mean_update: npt.NDArray[np.floating],
        total_weight: float,
        state: StrategyState | None = None,
    ) -> tuple[Vector, StrategyState]:
        """The next global weights and state, flat float32, of the whole model or of any block of it.

        `round_number` counts from 1; `state` is empty before the first step. LayoutError if the vectors or slots do
        not fit, NotFiniteError if the new weights are not finite.
        """
        self._restore(state or {}, len(weights))
        with np.errstate(over="ignore", invalid="ignore"):  # said below, as an error
            new = self._aggregate(round_number, weights, _add(weights, mean_update), total_weight)
        if not np.isfinite(new).all():
            raise NotFiniteError(
                f"the model of round {round_number} is no longer finite",
                hint="Lower [strategy] learning_rate or [training] learning_rate, or set [training] gradient_clip.",
            )
        return new, self._state()

    def _aggregate(self, round_number: int, weights: Vector, trained: Vector, total_weight: float) -> Vector:
        if type(self._strategy) in _AVERAGES:
            return trained
        self._begin(round_number, _record(weights))
        arrays, _ = self._strategy.aggregate_train(round_number, [_reply(_record(trained), total_weight)])
        assert arrays is not None
        return np.asarray(arrays[_WHOLE].numpy(), dtype=np.float32)

    def _state(self) -> StrategyState:
        kept = {slot: getattr(self._strategy, slot) for slot in self._slots}
        return {slot: value[0] if slot in _LISTS else value[_WHOLE] for slot, value in kept.items() if value}

    def _restore(self, state: StrategyState, size: int) -> None:
        if state and not state.keys() <= set(self._slots):
            raise LayoutError(
                f"{type(self._strategy).__name__} does not keep {', '.join(sorted(state))}",
                hint="The checkpoint is of another strategy.",
            )
        if any(len(held) != size for held in state.values()):  # else one element would be broadcast
            raise LayoutError(f"{size} weights and the state of {type(self._strategy).__name__} do not fit together")
        for slot in self._slots:
            held = state.get(slot)
            kept = [held] if slot in _LISTS else {_WHOLE: held}
            setattr(self._strategy, slot, None if held is None else kept)

    def _begin(self, round_number: int, arrays: ArrayRecord) -> ConfigRecord:
        if isinstance(self._strategy, FedAvgM):
            self._strategy.current_arrays = None  # else it goes on from weights of its own, not from `arrays`
        config = ConfigRecord()
        self._strategy.configure_train(round_number, arrays, config, _Nobody())
        return config


def _add(weights: Vector, mean_update: npt.NDArray[np.floating]) -> Vector:
    if weights.shape != mean_update.shape:
        raise LayoutError(f"weights {weights.shape} and update {mean_update.shape} do not fit together")
    trained = np.empty_like(weights)
    np.add(weights, mean_update, out=trained, dtype=np.float64, casting="same_kind")
    return trained


def _record(vector: Vector) -> ArrayRecord:
    return ArrayRecord({_WHOLE: Array(vector)})


def make_strategy(spec: RunSpec) -> RunStrategy:
    """The strategy that a run asks for. What the spec leaves open has Flower's own default."""
    section = spec.strategy
    stock = _STOCK[section.name]
    chosen = {theirs: getattr(section, ours) for ours, theirs in stock.options.items()}
    given = {name: value for name, value in chosen.items() if value is not None}
    return RunStrategy(stock.strategy(min_train_nodes=0, min_available_nodes=0, **given), stock.slots)


def _reply(arrays: ArrayRecord, total_weight: float) -> Message:
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": total_weight})})
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type=MessageType.TRAIN,
    )
    # The typed ways to make a message all read the process-global task identity, and this one is sent nowhere.
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload,no-any-return]


class _Nobody(Grid):
    """A Grid without nodes: a strategy prepares its round, but neither waits for silos nor builds messages."""

    def get_node_ids(self) -> tuple[int, ...]:
        return ()

    @property
    def run(self) -> Never:
        raise NotImplementedError

    def set_run(self, run: object) -> Never:
        raise NotImplementedError

    def create_message(self, *_args: object, **_kwargs: object) -> Never:
        raise NotImplementedError

    def push_messages(self, messages: object) -> Never:
        raise NotImplementedError

    def pull_messages(self, message_ids: object) -> Never:
        raise NotImplementedError

    def send_and_receive(self, messages: object, *, timeout: object = None) -> Never:
        raise NotImplementedError
