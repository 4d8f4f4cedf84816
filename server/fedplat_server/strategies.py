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
from fedplat.params import Layout, Vector
from fedplat.spec.model import RunSpec, StrategyName

StrategyState = Mapping[str, npt.NDArray[np.floating]]
"""What a strategy keeps from round to round: arrays by `<slot>/<parameter>`, for example `m_t/layer.weight`."""


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
_LISTS = {"momentum_vector"}  # without names, in the order of the parameters


class RunStrategy:
    """The strategy of one run. Its steps depend on what they are given and on `state()`, on nothing else."""

    def __init__(self, strategy: FedAvg, slots: tuple[str, ...], layout: Layout) -> None:
        self._strategy = strategy
        self._slots = slots
        self._layout = layout

    def configure(self, round_number: int) -> dict[str, ConfigRecordValues]:
        """What the strategy wants every silo to know, such as FedProx's `proximal-mu`."""
        return dict(self._begin(round_number, ArrayRecord()))

    def step(
        self, round_number: int, weights: Vector, mean_update: npt.NDArray[np.floating], total_weight: float
    ) -> Vector:
        """The next global weights, flat float32. `round_number` counts from 1.

        LayoutError if a vector does not fit the layout, FedplatError if the new weights are not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # said below, as an error
            trained = self._add(weights, mean_update)
            self._begin(round_number, self._record(weights))
            arrays, _ = self._strategy.aggregate_train(round_number, [_reply(self._record(trained), total_weight)])
            new = self._layout.join({name: array.numpy() for name, array in (arrays or {}).items()})
        if not np.isfinite(new).all():
            raise FedplatError(
                f"the model of round {round_number} is no longer finite",
                hint="Lower [strategy] learning_rate or [training] learning_rate, or set [training] gradient_clip.",
            )
        return new

    def state(self) -> StrategyState:
        """What `restore` needs to go on as if nothing had happened. Empty before the first step."""
        arrays: dict[str, npt.NDArray[np.floating]] = {}
        for slot in self._slots:
            kept = getattr(self._strategy, slot)
            if kept is not None:
                named = dict(zip(self._names, kept, strict=True)) if slot in _LISTS else kept
                arrays |= {f"{slot}/{name}": np.asarray(named[name]) for name in self._names}
        return arrays

    def restore(self, state: StrategyState) -> None:
        """Puts a `state()` back, of this or another object. LayoutError if it is not one of this strategy's."""
        full = {f"{slot}/{name}" for slot in self._slots for name in self._names}
        if state and state.keys() != full:
            raise LayoutError(
                f"{type(self._strategy).__name__} cannot be restored from a state that holds {len(state)} arrays, "
                f"of which {len(full & state.keys())} are among its {len(full)}",
                hint="The checkpoint is of another strategy or of another model.",
            )
        for slot in self._slots:
            named = {name: state[f"{slot}/{name}"] for name in self._names} if state else None
            setattr(self._strategy, slot, list(named.values()) if named and slot in _LISTS else named)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self._layout.shared)

    def _add(self, weights: Vector, mean_update: npt.NDArray[np.floating]) -> Vector:
        if mean_update.shape != (self._layout.size,) or weights.shape != mean_update.shape:
            raise LayoutError(
                f"weights {weights.shape} and update {mean_update.shape} do not fit a layout of {self._layout.size}"
            )
        trained = np.empty_like(weights)
        np.add(weights, mean_update, out=trained, dtype=np.float64, casting="same_kind")
        return trained

    def _record(self, vector: Vector) -> ArrayRecord:
        return ArrayRecord({name: Array(view) for name, view in self._layout.split(vector).items()})

    def _begin(self, round_number: int, arrays: ArrayRecord) -> ConfigRecord:
        if isinstance(self._strategy, FedAvgM):
            self._strategy.current_arrays = None  # else it goes on from weights of its own, not from `arrays`
        config = ConfigRecord()
        self._strategy.configure_train(round_number, arrays, config, _Nobody())
        return config


def make_strategy(spec: RunSpec, layout: Layout) -> RunStrategy:
    """The strategy that a run asks for. What the spec leaves open has Flower's own default."""
    section = spec.strategy
    stock = _STOCK[section.name]
    chosen = {theirs: getattr(section, ours) for ours, theirs in stock.options.items()}
    given = {name: value for name, value in chosen.items() if value is not None}
    return RunStrategy(stock.strategy(min_train_nodes=0, min_available_nodes=0, **given), stock.slots, layout)


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
