"""The runs of this server: submitted, driven each in a thread of its own, stopped, taken up again after a restart."""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from fedplat.durable import make_private_dir, write_atomic
from fedplat.errors import ConflictError, NotFoundError, SpecError
from fedplat.home import ServerHome
from fedplat.spec import RunSpec
from fedplat_server.driver import RunDriver, RunLive
from fedplat_server.registry import Registry
from fedplat_server.store import Run, Store
from fedplat_server.superlink import Link
from fedplat_server.transitions import is_final

_log = logging.getLogger(__name__)
INIT_FILE = "init.safetensors"


@dataclass
class _Running:
    driver: RunDriver
    thread: threading.Thread


@dataclass
class Coordinator:
    """Thread-safe. `on_end(run)` is called when a run has left this process."""

    home: ServerHome
    store: Store
    link: Link
    registry: Registry
    on_end: Callable[[str], None]
    _running: dict[str, _Running] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, spec: RunSpec, init: bytes | None = None, *, actor: str = "admin") -> Run:
        """Begin a run. `init`: a safetensors file with the initial weights, if the spec says so."""
        self._check(spec, init)
        run_id = _run_id(spec.name)
        folder = self.home.run(run_id)
        make_private_dir(folder)
        if init is not None:
            write_atomic(folder / INIT_FILE, init)
        run = self.store.runs.create(
            run_id=run_id,
            name=spec.name,
            spec=spec.model_dump(mode="json"),
            spec_hash=spec.hash,
            rounds_planned=spec.rounds.count,
            actor=actor,
        )
        self._start(run, spec)
        return run

    def _check(self, spec: RunSpec, init: bytes | None) -> None:
        unknown = [n for n in spec.silos.names if self.registry.member(n) is None]
        if unknown:
            raise NotFoundError(
                f"the spec names silos that are not enrolled: {', '.join(unknown)}",
                hint="fedplat silo list shows who is; fedplat silo invite NAME lets one in",
            )
        if spec.model.init.startswith("sha256:") != (init is not None):
            raise SpecError("the initial weights are missing", hint="submit the spec with the file beside it")

    def recover(self) -> list[str]:
        """Take up the runs that the last process left unfinished."""
        runs = [run for run in self.store.runs.unfinished() if run.id not in self._running]
        for run in runs:
            self._start(run, RunSpec.model_validate(run.spec))
        return [run.id for run in runs]

    def _start(self, run: Run, spec: RunSpec) -> None:
        driver = RunDriver(run.id, spec, self.home, self.store, self.link, self.registry)
        thread = threading.Thread(target=self._drive, args=(driver,), name=f"run-{run.id}", daemon=True)
        with self._lock:
            self._running[run.id] = _Running(driver, thread)
        thread.start()

    def _drive(self, driver: RunDriver) -> None:
        try:
            driver.drive()
        finally:
            with self._lock:
                self._running.pop(driver.run_id, None)
            self.registry.forget_run(driver.run_id)
            self.on_end(driver.run_id)

    def live(self, run_id: str) -> RunLive | None:
        """What a run is doing right now; None if it is not running here."""
        running = self._running.get(run_id)
        return running.driver.live if running else None

    def is_live(self, run_id: str, silo: str) -> bool:
        """Whether a silo should keep what it has of this run."""
        running = self._running.get(run_id)
        return running is not None and running.driver.wants(silo)

    def stop(self, run_id: str, *, actor: str = "admin") -> Run:
        """Stop a run for good; what it has committed stays. Waits until it has stopped."""
        run = self.store.runs.get(run_id)
        if is_final(run.state):
            raise ConflictError(f"run {run_id} is {run.state} already")
        running = self._running.get(run_id)
        if running is not None:
            self.store.events.append(kind="run.stop_asked", actor=actor, run_id=run_id)
            running.driver.stop(by_user=True)
            self.link.wake_runs()
            running.thread.join(timeout=30)
        return self.store.runs.get(run_id)

    def close(self) -> None:
        """The server goes down: runs stay as they are in the store and go on at the next start."""
        with self._lock:
            running = list(self._running.values())
        for one in running:
            one.driver.stop(by_user=False)
        self.link.wake_runs()
        for one in running:
            one.thread.join(timeout=5)


def _run_id(name: str) -> str:
    """Readable, unique, and legal in paths and addresses."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    return f"{slug}-{secrets.token_hex(3)}"
