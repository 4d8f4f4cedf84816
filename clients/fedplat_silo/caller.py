"""The call that a silo holds open: its heartbeat, and how it hears of messages and of runs that ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from pydantic import ValidationError

from fedplat import __version__
from fedplat.errors import ConflictError, ConnectionLostError, FedplatError, IdentityError, WireError
from fedplat.wire.http import WAKE_TIMEOUT_S, WakeReply, WakeRequest
from fedplat_silo.backoff import Backoff
from fedplat_silo.transport import CertificateError, Server

log = logging.getLogger(__name__)
MARGIN_S = 15.0
HURRY_S = 1.0
# After a crash of this machine the server holds the older process for alive as long as its last call may last.
CONFLICT_S = 75.0
CONFLICT_PAUSE_S = 5.0


@dataclass(frozen=True)
class Presence:
    """Which process calls. `holding` and `runs` are asked anew for each call."""

    home: str
    boot: int
    holding: Callable[[], tuple[str, ...]]
    runs: Callable[[], tuple[str, ...]]

    def request(self) -> WakeRequest:
        return WakeRequest(
            home=self.home, boot=self.boot, fedplat=__version__, holding=self.holding(), runs=self.runs()
        )


class Caller:
    """Calls for ever. `pull` takes a message that waits, `end` hears of each run that is over, `on_change` of
    every connection that is made or lost."""

    def __init__(
        self,
        server: Server,
        presence: Presence,
        pull: Callable[[], None],
        end: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._server = server
        self._presence = presence
        self._pull = pull
        self._end = end
        self._on_change = on_change
        self._has_answered = self._has_worked = False
        self._said_away = False
        self._conflict_since_s: float | None = None
        self.connected = False
        self.since_s = time.time()

    def run(self, stop: threading.Event) -> None:
        """The thread's work, until `stop`. Raises what a person has to mend: revoked, or connected elsewhere."""
        backoff = Backoff()
        while not stop.is_set():
            try:
                self._reach()
                self._call(stop)
                backoff.reset()
            except FedplatError as error:
                if self._is_final(error):
                    raise
                self._lost(error)
                longest_s = CONFLICT_PAUSE_S if isinstance(error, ConflictError) else inf
                stop.wait(min(backoff.next_s(), longest_s))

    def _reach(self) -> None:
        """A question that is answered at once: is the server there, and what time is it there?"""
        if self.connected:
            return
        self._server.get("health")
        if self._said_away or not self._has_answered:
            log.info("the server at %s %s", self._server.address, "is back" if self._said_away else "answers")
        self._said_away, self._has_answered = False, True
        self._set_connected(True)

    def _call(self, stop: threading.Event) -> None:
        request = self._presence.request()
        begun_s = time.monotonic()
        try:
            answer = self._server.post("wake", request, timeout_s=WAKE_TIMEOUT_S + MARGIN_S)
            reply = WakeReply.model_validate_json(answer)
        except ValidationError:
            raise WireError(
                "the server answers a wake-up in an unknown way", hint="Compare `fedplat --version` of both."
            ) from None
        self._has_worked = True
        for run in request.runs:
            if run not in reply.runs:
                self._end(run)
        if reply.messages:
            self._pull()
        elif reply.runs == request.runs and time.monotonic() - begun_s < HURRY_S:
            stop.wait(HURRY_S)  # it is going down, and lets everybody go

    def _is_final(self, error: FedplatError) -> bool:
        if isinstance(error, ConnectionLostError) or self._may_be_myself(error):
            return False
        # A certificate that was good and is not any more may be a server that is being set up anew.
        always = isinstance(error, IdentityError | ConflictError) and not isinstance(error, CertificateError)
        return always or not self._has_worked

    def _may_be_myself(self, error: FedplatError) -> bool:
        """Whether the process that stands in the way may be this silo's own, dead one."""
        if self._has_worked or not isinstance(error, ConflictError):
            return False
        if self._conflict_since_s is None:
            self._conflict_since_s = time.monotonic()
            log.warning("%s; if it is dead, the server will know within %d s", error.message, CONFLICT_S)
        return time.monotonic() - self._conflict_since_s < CONFLICT_S

    def _lost(self, error: FedplatError) -> None:
        log.debug("the call failed: %s", error)
        if not self.connected and not self._said_away:
            self._said_away = True
            log.warning("%s; trying again until it is back", error.message)
        self._set_connected(False)

    def _set_connected(self, connected: bool) -> None:
        if self.connected != connected:
            self.since_s = time.time()
        self.connected = connected
        self._on_change()
