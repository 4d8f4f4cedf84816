"""Waiting longer after each failure, each silo a little differently."""

from __future__ import annotations

import random

FIRST_S = 0.5
LONGEST_S = 30.0
GROWTH = 1.3  # a server that is back after seconds is found within a second or two


class Backoff:
    """0.5 s, 0.65 s, 0.85 s ... 30 s, each shortened by up to half by chance: silos must not come back in step."""

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
        limit_s: float = min(self._longest_s, self._first_s * GROWTH ** min(self._num_failures, 100))
        self._num_failures += 1
        return limit_s * self._chance.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked."""
        self._num_failures = 0
