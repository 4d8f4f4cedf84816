"""What keeps a silo from training."""

from __future__ import annotations

from fedplat.errors import DataError
from fedplat.reasons import Reason


class Refused(DataError):
    """Data or options that a task cannot use: `reason` may leave the silo, the message (file, line, value) must not."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail, hint=reason.hint)
        self.reason = reason
