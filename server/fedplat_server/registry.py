"""Who is enrolled, who is here, and what each silo is doing: the server's memory of its silos.

SQL owns the membership; this is what every request looks at. Presence and progress are never stored: after a restart
the silos tell them anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.errors import ConflictError
from fedplat.identity import load_public
from fedplat.wire.http import Progress, WakeRequest

# A silo whose request ended is expected to call again at once; longer than this and it is gone.
GRACE_S = 5.0


@dataclass(frozen=True)
class Member:
    """An enrolled silo."""

    name: str
    node_id: int
    public_key_pem: str
    public_key: ec.EllipticCurvePublicKey = field(repr=False)


@dataclass
class _Presence:
    home: str = ""
    boot: int = 0
    open_wakes: int = 0
    last_seen_s: float = 0.0
    last_seen_at: datetime | None = None
    progress: dict[str, Progress] = field(default_factory=dict)


class Registry:
    """Thread-safe. Times are seconds of a monotonic clock. `on_change` is called when a silo comes or goes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._clock = clock
        self._members: dict[str, Member] = {}
        self._revoked: dict[str, Member] = {}
        self._presence: dict[str, _Presence] = {}
        self._lock = threading.Lock()

    def admit(self, name: str, node_id: int, public_key_pem: str) -> Member:
        """Let a silo in, or give it its new key."""
        member = Member(name, node_id, public_key_pem, load_public(public_key_pem))
        with self._lock:
            self._members[name] = member
            self._revoked.pop(name, None)
            self._presence[name] = _Presence()
        return member

    def expel(self, name: str) -> Member | None:
        """Forget a silo; returns who it was."""
        with self._lock:
            self._presence.pop(name, None)
            member = self._members.pop(name, None)
            if member is not None:
                self._revoked[name] = member
        self.on_change()
        return member

    def member(self, name: str) -> Member | None:
        """The enrolled silo of that name."""
        return self._members.get(name)

    def revoked(self, name: str) -> Member | None:
        """The silo of that name that was enrolled once and is not any more."""
        return self._revoked.get(name)

    def members(self) -> tuple[Member, ...]:
        """All enrolled silos, sorted by name."""
        with self._lock:
            return tuple(self._members[name] for name in sorted(self._members))

    # -- presence -------------------------------------------------------------------------------------------------

    def seen(self, name: str) -> None:
        """Any authenticated request is a sign of life."""
        with self._lock:
            if (presence := self._presence.get(name)) is not None:
                presence.last_seen_s = self._clock()
                presence.last_seen_at = datetime.now(UTC)

    def last_seen(self) -> dict[str, datetime]:
        """When each silo was last heard by this process, for the store."""
        with self._lock:
            return {name: p.last_seen_at for name, p in self._presence.items() if p.last_seen_at is not None}

    def begin_wake(self, name: str, wake: WakeRequest) -> None:
        """A silo's process calls. ConflictError if another live process is connected under its name."""
        with self._lock:
            presence = self._presence[name]
            self._check_process(name, presence, wake)
            came = not self._is_here(presence)
            if (presence.home, presence.boot) != (wake.home, wake.boot):
                presence.home, presence.boot = wake.home, wake.boot
                presence.open_wakes = 0
                presence.progress.clear()
            presence.open_wakes += 1
            presence.last_seen_s = self._clock()
        if came:
            self.on_change()

    def _check_process(self, name: str, presence: _Presence, wake: WakeRequest) -> None:
        # One home is locked by one process: a higher boot of the same home means the older process is dead.
        if presence.home in ("", wake.home):
            if wake.boot < presence.boot and self._is_here(presence):
                raise ConflictError(f"a newer process of silo {name} is connected")
        elif self._is_here(presence):
            raise ConflictError(
                f"another process is connected as silo {name}, from another machine or folder",
                hint="stop that one, or enrol this machine as a silo of its own",
            )

    def end_wake(self, name: str, wake: WakeRequest, *, gone: bool) -> None:
        """A wake was answered, or (`gone`) its connection broke."""
        with self._lock:
            presence = self._presence.get(name)
            if presence is None or (presence.home, presence.boot) != (wake.home, wake.boot):
                return
            presence.open_wakes = max(0, presence.open_wakes - 1)
            presence.last_seen_s = self._clock() - (GRACE_S if gone and not presence.open_wakes else 0.0)
        if gone:
            self.on_change()

    def is_here(self, name: str) -> bool:
        """Whether the silo holds a wake open, or was heard a moment ago."""
        with self._lock:
            presence = self._presence.get(name)
            return presence is not None and self._is_here(presence)

    def _is_here(self, presence: _Presence) -> bool:
        recent = self._clock() - presence.last_seen_s < GRACE_S
        return bool(presence.home) and (presence.open_wakes > 0 or recent)

    def away_s(self, name: str) -> float | None:
        """Seconds since the silo was last heard; None if never since this server started."""
        with self._lock:
            presence = self._presence.get(name)
            if presence is None or not presence.home:
                return None
            return 0.0 if presence.open_wakes else self._clock() - presence.last_seen_s

    # -- progress -------------------------------------------------------------------------------------------------

    def report(self, name: str, progress: Progress) -> None:
        """What a silo says it is doing in a run."""
        with self._lock:
            if (presence := self._presence.get(name)) is not None:
                presence.progress[progress.run] = progress

    def progress(self, name: str, run: str) -> Progress | None:
        """The last that was heard."""
        with self._lock:
            presence = self._presence.get(name)
            return presence.progress.get(run) if presence else None

    def forget_run(self, run: str) -> None:
        """Drop the progress of a run that is over."""
        with self._lock:
            for presence in self._presence.values():
                presence.progress.pop(run, None)
