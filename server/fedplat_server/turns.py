"""Whose turn it is at a silo, among the runs of one server that recruit at the same time.

A silo of one run at a time belongs to the run that asked it first; two runs that wait for each other's silos would
wait for ever. So the older run has precedence, at each silo by itself: a younger one asks a silo only when no older one
wants it any more, and lets go of a silo that an older one was told to wait for. The oldest run never gives way, so
there is no circle and nobody starves. A run that has too few silos connected to begin wants none, and lets go of those
that others wait for: who never comes blocks only the runs that need them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType

Age = tuple[str, str]


@dataclass(frozen=True)
class Claim:
    """What a run says of its recruiting. `wants`: silos that it has not got; `busy`: those of them that told it to wait
    for another run. `ready`: enough of its silos are connected."""

    wants: frozenset[str]
    busy: frozenset[str]
    ready: bool


class Turns:
    """Thread-safe. Runs are known by their age: (time of submission, id)."""

    def __init__(self) -> None:
        self._claims: dict[Age, Claim] = {}
        self._lock = threading.Lock()

    def claim(self, run: Age, claim: Claim) -> None:
        """Say anew what a run wants, if it is to be heard."""
        with self._lock:
            self._claims[run] = claim

    def leave(self, run: Age) -> None:
        """The run recruits no more."""
        with self._lock:
            self._claims.pop(run, None)

    def ahead(self, run: Age) -> Mapping[str, str]:
        """The silos that an older run is about to get, each with the id of the oldest such run."""
        with self._lock:
            older = sorted((age, c) for age, c in self._claims.items() if age < run and c.ready)
        found: dict[str, str] = {}
        for (_, run_id), claim in older:
            found = dict.fromkeys(claim.wants, run_id) | found
        return MappingProxyType(found)

    def owed(self, run: Age) -> Set[str]:
        """The silos that this run should let go of, if it has them."""
        with self._lock:
            mine = self._claims.get(run)
            others = [c for age, c in self._claims.items() if age != run and c.ready and self._yields(mine, run, age)]
        return frozenset().union(*(c.busy for c in others))

    @staticmethod
    def _yields(mine: Claim | None, run: Age, other: Age) -> bool:
        return other < run or (mine is not None and not mine.ready)
