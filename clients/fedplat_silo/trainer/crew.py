"""The processes of a run's workers and the connections to them."""

from __future__ import annotations

import hashlib
import os
import selectors
import shutil
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from fedplat.home import socket_path
from fedplat_silo.trainer.channel import Channel, is_own
from fedplat_silo.trainer.errors import Cancelled, WorkerLost
from fedplat_silo.trainer.leader import Leader
from fedplat_silo.trainer.messages import AGENT, EVENTS, Command, Event, Exited, Hello, Setup
from fedplat_silo.trainer.plan import TrainingPlan

_CONNECT_TIMEOUT_S = 120.0
_HELLO_TIMEOUT_S = 5.0
_STATUS_TIMEOUT_S = 2.0
_STEP_S = 0.1
_LISTENER = -2
_WAKE = -3


class Crew:
    """A single worker, supervised here, or an elastic agent with several: one full generation of them at a time.

    `wake`: readable when the command is to be given up. All methods belong to one thread at a time.
    """

    def __init__(self, plan: TrainingPlan, log: Path, fds: tuple[int, int], wake: socket.socket) -> None:
        self._plan, self._log, self._fds = plan, log, fds
        self._folder = Path(tempfile.mkdtemp(prefix=_prefix(plan.run_dir.parent)))
        # the kernel ends a child with the *thread* that started it, so that thread has to stay
        self._starter = ThreadPoolExecutor(1, "fedplat-starter")
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake, selectors.EVENT_READ, _WAKE)
        self._leader: Leader | None = None
        self._listener: socket.socket | None = None
        self._channels: dict[int, Channel] = {}
        self._num_starts = 0
        self._generation = 0  # which one is connected, maybe not yet in full
        self._oldest = 0  # those before it are lost
        self._exits: dict[int, int] = {}  # exit status by generation, as the agent reports it
        self.pids: tuple[int, ...] = ()  # the workers' process ids, by rank

    @property
    def is_complete(self) -> bool:
        """Whether every rank of a generation is connected, and none of it is known to be lost."""
        return self._generation >= self._oldest and len(self._channels.keys() - {AGENT}) == self._plan.num_ranks

    def assemble(self) -> None:
        """Waits for all workers of one generation, starting them if need be, and sends them their run.

        Raises WorkerLost or Cancelled.
        """
        if self._leader is None or self._leader.wait() is not None:
            self._restart()
        deadline = time.monotonic() + _CONNECT_TIMEOUT_S
        while not self.is_complete:
            self._check_alive(deadline)
            self.poll(_STEP_S)
        self.pids = tuple(self._channels[rank].peer()[0] for rank in range(self._plan.num_ranks))
        self._send(Setup(plan=self._plan), self._fds)

    def send(self, command: Command) -> None:
        """To all workers. Raises WorkerLost."""
        self._send(command, ())

    def poll(self, timeout_s: float) -> list[tuple[int, Event]]:
        """(rank, event) of what has come within the time. Raises WorkerLost or Cancelled."""
        events: list[tuple[int, Event]] = []
        lost = False
        for key, _ in self._selector.select(timeout_s):
            if key.data == _WAKE:
                raise Cancelled
            if key.data == _LISTENER:
                self._admit()
            elif (channel := self._channels.get(key.data)) is key.fileobj and channel is not None:
                lines, is_open = channel.receive_ready()
                events += [(key.data, EVENTS.validate_json(line)) for line in lines]
                lost |= not is_open and self._closed(key.data)
        self._note_statuses(events)
        if lost:
            raise self._loss(self._generation)
        return events

    def stop(self) -> None:
        """Ends all processes, within two seconds; `assemble` starts new ones."""
        if self._leader is not None:
            self._leader.stop()
            self._leader = None
        for rank in list(self._channels):
            self._drop(rank)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Ends everything for good."""
        self.stop()
        self._selector.close()
        self._starter.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _restart(self) -> None:
        self.stop()
        self._num_starts += 1
        self._generation = self._oldest = 0
        self._exits.clear()
        path = socket_path(self._folder / str(self._num_starts))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(self._plan.num_ranks + 1)
        self._selector.register(self._listener, selectors.EVENT_READ, _LISTENER)
        arguments = (_command(self._plan, path), worker_environment(self._plan.threads), self._log)
        self._leader = self._starter.submit(Leader, *arguments).result()

    def _admit(self) -> None:
        """Takes a connection, if it is a worker of this generation or a later one, or the agent."""
        assert self._listener is not None
        channel = Channel(self._listener.accept()[0])
        hello = _hello(channel)
        if hello is None or (hello.rank != AGENT and hello.generation < max(self._oldest, self._generation)):
            channel.close()
            return
        if hello.generation > self._generation:
            self._generation = hello.generation
            for rank in [r for r in self._channels if r != AGENT]:
                self._drop(rank)
        self._channels[hello.rank] = channel
        self._selector.register(channel, selectors.EVENT_READ, hello.rank)

    def _closed(self, rank: int) -> bool:
        """Whether this end of a connection is a loss: not while a generation is still coming together."""
        was_complete = self.is_complete
        self._drop(rank)
        return was_complete

    def _drop(self, rank: int) -> None:
        channel = self._channels.pop(rank)
        self._selector.unregister(channel)
        channel.close()

    def _check_alive(self, deadline: float) -> None:
        """That the workers of an incomplete generation may still come."""
        assert self._leader is not None
        newest = max(self._exits, default=-1)
        if newest >= self._oldest or self._leader.wait() is not None:
            raise self._loss(max(newest, self._generation))
        if time.monotonic() > deadline:
            self.stop()
            raise WorkerLost(0)

    def _send(self, line: Setup | Command, fds: tuple[int, ...]) -> None:
        try:
            for rank, channel in self._channels.items():
                if rank != AGENT:
                    channel.send(line, fds)
        except OSError:
            raise self._loss(self._generation) from None

    def _loss(self, generation: int) -> WorkerLost:
        """What is left of this generation does not count any more; the agent, or the next start, replaces it.

        Its connections stay until then: closing one would end its worker, and hide which of them ended first.
        """
        self._oldest = generation + 1
        self.pids = ()
        return WorkerLost(self._status(generation))

    def _status(self, generation: int) -> int:
        """How the worker ended: from the kernel, or from the agent, which needs a moment to see it; 0: unknown."""
        assert self._leader is not None
        deadline = time.monotonic() + _STATUS_TIMEOUT_S
        while generation not in self._exits and AGENT in self._channels and time.monotonic() < deadline:
            self.poll(_STEP_S)
        if AGENT in self._channels:
            return self._exits.get(generation, 0)
        status = self._leader.wait(_STATUS_TIMEOUT_S) or 0
        self.stop()
        return status

    def _note_statuses(self, events: list[tuple[int, Event]]) -> None:
        for _, event in events:
            if isinstance(event, Exited) and event.statuses:
                self._exits[event.generation] = min(event.statuses.values())  # a signal before what followed from it


def remove_leftover_crews(runs: Path) -> None:
    """Removes the sockets' folders of killed processes whose runs were in this folder. Needs the lock on it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix(runs)}*"):
        if folder.lstat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _prefix(runs: Path) -> str:
    """The place of the runs is in the name: a socket's path has to be short, so it cannot be in the silo's home."""
    return f"fedplat-{hashlib.sha256(os.fsencode(runs.resolve())).hexdigest()[:16]}-"


def _hello(channel: Channel) -> Hello | None:
    channel.socket.settimeout(_HELLO_TIMEOUT_S)
    try:
        line = channel.receive() if is_own(channel) else None
        hello = None if line is None else Hello.model_validate_json(line)
    except (OSError, ValidationError):
        return None
    channel.socket.settimeout(None)
    return hello


def _command(plan: TrainingPlan, path: Path) -> list[str]:
    # -P: a file in the current folder must not pass for a module
    python = [sys.executable, "-P", "-m"]
    if plan.num_ranks == 1:
        return [*python, "fedplat_silo.trainer.worker", str(path), str(os.getpid())]
    return [*python, "fedplat_silo.trainer.agent", str(path), str(os.getpid()), str(plan.num_ranks)]


def worker_environment(threads: int) -> dict[str, str]:
    """What a worker's process finds in its environment; they meet on this machine alone."""
    fixed = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS is not deterministic
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # the shared store would listen on all interfaces
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **fixed}
