"""A real federation for tests and benchmarks: a server and silos as processes, TLS on, in a folder of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fedplat.home import SiloHome
from fedplat_server.adminclient import connect

FEDPLAT = (sys.executable, "-m", "fedplat")
STOP_S = 3.0


class CommandFailed(Exception):
    """A fedplat command ended with an error; the text is what it printed."""


@dataclass
class Federation:
    """`folder/server` is the server's home, `folder/silos` the silos'."""

    folder: Path
    port: int
    env: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    server_options: tuple[str, ...] = ()

    def command(self, *words: str, check: bool = True, stdin: str | None = None) -> str:
        """Run a fedplat command as a user would; returns what it prints (both streams)."""
        done = self.attempt(*words, stdin=stdin)
        if check and done.returncode:
            raise CommandFailed(done.stdout + done.stderr)
        return done.stdout + ("" if check else done.stderr)

    def attempt(
        self, *words: str, stdin: str | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a fedplat command that may fail."""
        environment = self.env | dict(env or {})
        return subprocess.run(
            [*FEDPLAT, *words], env=environment, capture_output=True, text=True, check=False, input=stdin, timeout=300
        )

    def ask(self, path: str, post: object = None) -> Any:
        """What the server answers an administrator's program: quicker than a command. FedplatError."""
        with connect(self.env["FEDPLAT_HOME"]) as admin:
            return admin.get(path) if post is None else admin.post(path, post)

    def json(self, *words: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.command(*words, "--json"))

    def start(
        self,
        name: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        program: tuple[str, ...] = FEDPLAT,
    ) -> subprocess.Popen[bytes]:
        """Start a long-running fedplat process; its output goes to `folder/name.log`."""
        given = subprocess.PIPE if stdin else None
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*program, *words],
                env=self.env | dict(env or {}),
                stdin=given,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        if process.stdin is not None:
            process.stdin.write(stdin.encode())
            process.stdin.close()
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        """What a process has printed so far."""
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start_server(self, *options: str, program: tuple[str, ...] = FEDPLAT) -> None:
        """Start, and wait until it answers."""
        options = options or self.server_options
        words = ("server", "start", "--host", "127.0.0.1", "--name", "localhost", "--port", str(self.port), *options)
        process = self.start("server", *words, program=program)
        wait_until(lambda: self._server_answers(process), 30, lambda: self.log("server"))

    def _server_answers(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, self.log("server")
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(self.folder / "server" / "server" / "admin.sock"))
            return bool(self.ask("/ping"))
        return False

    def join(
        self,
        silo: str,
        *options: str,
        data: Mapping[str, Path] | None = None,
        wait: bool = True,
        policy: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Invite a silo unless it is enrolled, start it, and wait until the server sees it. `policy`: as TOML text."""
        words = ["client", "join", "--silo", silo, "--home", str(self.folder / "silos")]
        home = SiloHome(self.folder / "silos", silo)
        if not home.key.exists():
            home.create()
            path = self.folder / f"{silo}.invite"
            path.write_text(self.ask("/invites", {"silo": silo})["invite"])
            words += ["--invite", f"@{path}"]
        if policy:
            home.policy.write_text(policy)
        for name, source in (data or {"none": self._no_data()}).items():
            words += ["--data", f"{name}={source}"]
        self.start(silo, *words, *options, env=env)
        if wait:
            self.wait_connected(silo)

    def wait_connected(self, *silos: str, timeout_s: float = 30) -> None:
        """Wait until the server sees them all."""
        wait_until(lambda: all(self.connected(silo) for silo in silos), timeout_s, self.all_logs)

    def _no_data(self) -> Path:
        """A dataset for tasks that need none."""
        path = self.folder / "none.csv"
        path.write_text("nothing\n1\n")
        return path

    def connected(self, silo: str) -> bool:
        """Whether the server sees the silo."""
        return any(s["name"] == silo and s["connected"] for s in self.ask("/silos"))

    def silo_home(self, silo: str) -> Path:
        """Where a silo keeps its state."""
        return self.folder / "silos" / "silos" / silo

    def kill(self, name: str) -> None:
        """kill -9, of that process alone."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> int:
        """SIGTERM; returns the exit status."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(15)

    def submit(self, spec: str) -> str:
        """Submit a spec given as TOML text; returns the run's id."""
        path = self.folder / "spec.toml"
        path.write_text(spec)
        return str(self.json("run", "submit", str(path))["id"])

    def snapshot(self, run: str) -> dict[str, Any]:
        """`fedplat run show`."""
        view: dict[str, Any] = self.ask(f"/runs/{run}")
        return view

    def live(self, run: str) -> dict[str, Any]:
        """What `fedplat run watch` draws just now."""
        view: dict[str, Any] = self.ask(f"/runs/{run}/snapshot")
        return view

    def wait_for(self, run: str, state: str = "finished", timeout_s: float = 120) -> dict[str, Any]:
        """Wait until a run is in a state; AssertionError if it ends in another."""

        def there() -> bool:
            view = self.live(run)
            if view["state"] in ("finished", "failed", "stopped") and view["state"] != state:
                raise AssertionError(f"{view['state']}: {view['reason']}\n{self.all_logs()}")
            return bool(view["state"] == state)

        wait_until(there, timeout_s, self.all_logs)
        return self.snapshot(run)

    def words(self, run: str, silo: str) -> str:
        """What `run watch` says about a silo."""
        return next((s["words"] for s in self.live(run)["silos"] if s["name"] == silo), "")

    def in_round(self, run: str, number: int, *silos: str) -> Callable[[], bool]:
        """A check for `wait_until`: these silos train now, in this round or a later one."""

        def look() -> bool:
            view = self.live(run)
            assert not view["final"], view["reason"]
            words = {s["name"]: s["words"] for s in view["silos"]}
            return view["round"] >= number and all(words.get(silo, "").startswith("training") for silo in silos)

        return look

    def workers(self, silo: str) -> list[int]:
        """Process ids of a silo's workers."""
        children = Path(f"/proc/{self.processes[silo].pid}/task").glob("*/children")
        return [int(pid) for path in children for pid in path.read_text().split()]

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What the server's SQLite database answers."""
        with closing(sqlite3.connect(self.folder / "server" / "server" / "fedplat.db")) as database:
            return database.execute(query, values).fetchall()

    def weights(self, run: str) -> dict[str, np.ndarray]:
        """The last committed weights."""
        return load_file(self.rows("select weights_path from runs where id = ?", run)[0][0])

    def all_logs(self) -> str:
        """For a failed test."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        """Stop everything, for sure."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(check: Any, timeout_s: float, context: Any = lambda: "") -> None:
    """Poll until `check()` is true; AssertionError with `context()` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout_s} s\n{context()}"
        time.sleep(0.1)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def federation(*server_options: str, env: Mapping[str, str] | None = None, start: bool = True) -> Iterator[Federation]:
    """A server, ready for silos, in a short temporary folder that goes away afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fp-"))
    environment = os.environ | {"FEDPLAT_HOME": str(folder / "server"), "PYTHONUNBUFFERED": "1"} | dict(env or {})
    made = Federation(folder, free_port(), environment, server_options=server_options)
    try:
        if start:
            made.start_server()
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


ADD_CONSTANT = """
name = "{name}"
seed = 1
[task]
name = "add_constant"
[task.options]
size = {size}
constant = 0.01
seconds = {seconds}
[data]
name = "none"
[rounds]
count = {rounds}
timeout_s = {timeout_s}
[silos]
minimum = {minimum}
names = [{names}]
join_timeout_s = 60
wait_s = {wait_s}
[strategy]
name = "{strategy}"
[training]
steps = 1
[evaluation]
every = 1
"""


def add_constant(
    *,
    name: str = "add",
    size: int = 1000,
    seconds: float = 0.0,
    rounds: int = 3,
    timeout_s: float = 60,
    minimum: int = 1,
    silos: tuple[str, ...] = (),
    wait_s: float = 120,
    strategy: str = "fedavg",
) -> str:
    """A spec of the task that adds 0.01 to every weight."""
    names = ", ".join(f'"{silo}"' for silo in silos)
    return ADD_CONSTANT.format(**{k: v for k, v in locals().items() if k != "silos"} | {"names": names})
