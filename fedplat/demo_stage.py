"""What the demo is played on: a folder, and the processes in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from fedplat.errors import FedplatError

STOP_WITHIN_S = 1.5
FEDPLAT = (sys.executable, "-m", "fedplat")


@dataclass
class Stage:
    """The folder, and the processes that play in it."""

    folder: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """One home for the server and another for the hospitals, as if on different machines."""
        return os.environ | {"FEDPLAT_HOME": str(self.folder / "server"), "PYTHONUNBUFFERED": "1"}

    def hospital_home(self) -> Path:
        """Where the hospitals keep their state."""
        return self.folder / "hospitals"

    def start(self, name: str, *words: str) -> None:
        """Start a process of the cast; its output goes into a file beside the others."""
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            self.processes[name] = subprocess.Popen(  # noqa: S603 (our own command, no shell)
                [*FEDPLAT, *words], env=self.environment, stdout=log, stderr=subprocess.STDOUT, process_group=0
            )

    def run(self, *words: str) -> str:
        """What a command prints. FedplatError if it fails."""
        done = subprocess.run(  # noqa: S603
            [*FEDPLAT, *words], env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise FedplatError(f"fedplat {' '.join(words)} failed: {done.stderr.strip()}", hint=f"see {self.folder}")
        return done.stdout

    def ask(self, *words: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.run(*words, "--json"))

    def show(self, *words: str) -> int:
        """Run a command in front of the audience. Returns its exit status."""
        say(f"$ fedplat {' '.join(words)}")
        return subprocess.run([*FEDPLAT, *words], env=self.environment, check=False).returncode  # noqa: S603

    def wait_until(self, what: str, check: Callable[[], bool]) -> None:
        """FedplatError with `what` if it is not so within three minutes."""
        deadline = time.monotonic() + 180
        while not check():
            if time.monotonic() > deadline:
                raise FedplatError(f"{what} within three minutes", hint=f"the logs are in {self.folder} (use --keep)")
            time.sleep(0.2)

    def stop(self) -> None:
        """Everything ends, within two seconds."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN_S
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def say(text: str = "") -> None:
    """A line for the audience, at once."""
    click.echo(text)
    sys.stdout.flush()


@contextmanager
def place(folder: Path | None, *, keep: bool) -> Iterator[Path]:
    """A new folder, in `folder` if there is one; it goes away afterwards unless `keep`."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Short: Unix socket paths have at most 107 bytes.
    made = Path(tempfile.mkdtemp(prefix="fedplat-demo-", dir=folder))
    try:
        yield made
    finally:
        if not keep:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does."""
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
