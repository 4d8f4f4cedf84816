"""Waiting longer after each failure, each silo a little differently."""

from __future__ import annotations

import random

FIRST_S = 0.5
LONGEST_S = 30.0


class Backoff:
    """0.5 s, 1 s, 2 s ... 30 s, each shortened by up to half by chance: silos must not come back in step."""

    def __init__(self, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._chance = random.SystemRandom()
        self._num_failures = 0

    @property
    def num_failures(self) -> int:
        """Since the last time that it worked."""
        return self._num_failures

    def next_s(self) -> float:
        """How long to wait now, in seconds."""
        limit_s: float = min(self._longest_s, self._first_s * 2.0 ** min(self._num_failures, 30))
        self._num_failures += 1
        return limit_s * self._chance.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked."""
        self._num_failures = 0
