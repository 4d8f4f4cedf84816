"""A child process that leads a process group, and ends with all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_TERM_S = 1.0
_KILL_S = 0.5
_STEP_S = 0.01


class Leader:
    """Runs `arguments` with standard output and error appended to `log` (0600).

    It is reaped last, so until then its number, which is the group's, cannot have passed to a stranger.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(  # noqa: S603 (our own modules)
                arguments,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float = 0.0) -> int | None:
        """The exit status, -9 for signal 9; None while it runs."""
        deadline = time.monotonic() + timeout_s
        while (ended := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
            if time.monotonic() >= deadline:
                return None
            time.sleep(_STEP_S)
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def stop(self) -> None:
        """Ends the whole group, within two seconds: asked first, then killed."""
        self._signal(signal.SIGTERM)
        self.wait(_TERM_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + _KILL_S
        while self._signal(0) and time.monotonic() < deadline:
            time.sleep(_STEP_S)

    def _signal(self, number: int) -> bool:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)
            return True
        return False
