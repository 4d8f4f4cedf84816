"""What the rounds of a run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedplat.params import Layout
from fedplat.spec import RunSpec
from fedplat.wire.buffers import INLINE_BYTES
from fedplat_server.checkpoints import Checkpoint, Checkpoints
from fedplat_server.ledgers import Ledgers
from fedplat_server.road import Road
from fedplat_server.staging import Staging
from fedplat_server.store import Store
from fedplat_server.strategies import RunStrategy

if TYPE_CHECKING:
    from fedplat_server.secure import Epoch, SecureRun


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
    secure: SecureRun | None = None
    ledgers: Ledgers | None = None

    @property
    def weights_bytes(self) -> int:
        """The length of weights as they travel, and of initial ones."""
        return self.layout.size * self.spec.transport.precision.item_bytes

    @property
    def upload_bytes(self) -> int:
        """The length of an update as it travels."""
        return self.weights_bytes if self.secure is None else self.secure.upload_bytes

    @property
    def weights_by_road(self) -> bool:
        """Whether weights are too large for a message."""
        return self.weights_bytes > INLINE_BYTES

    def smallest_cohort(self, num_silos: int) -> int:
        """The fewest updates that a round of so many silos ends with."""
        return self.minimum if self.secure is None else self.secure.smallest_cohort(num_silos)


@dataclass(frozen=True)
class RoundTask:
    """One step at a round: the model that it begins with, and the silos that are asked, by name; with secure
    aggregation, the epoch by whose keys they mask."""

    number: int
    step: int
    model: Checkpoint
    roster: tuple[str, ...]
    epoch: Epoch | None = None


class RoundLost(Exception):
    """A round that has to be begun again, with a new step."""
