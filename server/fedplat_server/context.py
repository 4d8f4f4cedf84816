"""What the rounds of a run share."""

from __future__ import annotations

from dataclasses import dataclass

from fedplat.params import Layout
from fedplat.spec import RunSpec
from fedplat.wire.buffers import INLINE_BYTES
from fedplat_server.checkpoints import Checkpoint, Checkpoints
from fedplat_server.road import Road
from fedplat_server.staging import Staging
from fedplat_server.store import Store
from fedplat_server.strategies import RunStrategy


@dataclass(frozen=True)
class RunContext:
    """What does not change from round to round."""

    run_id: str
    spec: RunSpec
    layout: Layout
    minimum: int
    store: Store
    strategy: RunStrategy
    checkpoints: Checkpoints
    staging: Staging
    road: Road

    @property
    def buffer_bytes(self) -> int:
        """The length of weights and updates as they travel."""
        return self.layout.size * self.spec.transport.precision.item_bytes

    @property
    def by_road(self) -> bool:
        """Whether they are too large for a message."""
        return self.buffer_bytes > INLINE_BYTES


@dataclass(frozen=True)
class RoundTask:
    """One step at a round: the model that it begins with, and the silos that are asked, by name."""

    number: int
    step: int
    model: Checkpoint
    roster: tuple[str, ...]


class RoundLost(Exception):
    """A round that has to be begun again, with a new step."""
