"""Tells the server, and other processes of this machine, what the silo is doing; never in training's way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from fedplat.errors import FedplatError
from fedplat.wire.http import Progress

log = logging.getLogger(__name__)
INTERVAL_S = 0.5


class Reporter:
    """Keeps the newest progress of each run; a thread passes it on at most every 0.5 s."""

    def __init__(self, send: Callable[[Progress], None], publish: Callable[[tuple[Progress, ...]], None]) -> None:
        self._send = send
        self._publish = publish
        self._newest: dict[str, Progress] = {}
        self._unsent: set[str] = set()
        self._changed = threading.Event()
        self._lock = threading.Lock()

    def report(self, progress: Progress) -> None:
        """Never waits."""
        with self._lock:
            self._newest[progress.run] = progress
            self._unsent.add(progress.run)
        self._changed.set()

    def forget(self, run: str) -> None:
        """The run is over."""
        with self._lock:
            self._newest.pop(run, None)
            self._unsent.discard(run)
        self._changed.set()

    def changed(self) -> None:
        """Something else of the status has changed."""
        self._changed.set()

    def run(self, stop: threading.Event) -> None:
        """The thread's work, until `stop`."""
        while not stop.wait(INTERVAL_S):
            if self._changed.wait(INTERVAL_S):
                self._changed.clear()
                self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            unsent = [self._newest[run] for run in sorted(self._unsent)]
            self._unsent.clear()
            newest = tuple(self._newest[run] for run in sorted(self._newest))
        try:
            self._publish(newest)
            for progress in unsent:
                self._send(progress)
        except (FedplatError, OSError) as error:
            log.debug("progress was not passed on: %s", error)
