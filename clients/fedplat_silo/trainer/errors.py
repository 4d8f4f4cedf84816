"""How a command to the workers can end, other than well."""

from __future__ import annotations

from fedplat.reasons import Reason


class TrainingFailed(Exception):
    """The silo cannot do what it was asked; `reason` may leave the silo, the detail is in its log."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Cancelled(Exception):
    """Another thread has cancelled the command."""


class WorkerLost(Exception):
    """A worker has ended that should not have; `status` is its exit status, -9 for signal 9."""

    def __init__(self, status: int) -> None:
        super().__init__(f"a worker ended with status {status}")
        self.status = status
