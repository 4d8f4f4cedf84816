"""The runs of this server: submitted, driven each in a thread of its own, stopped, taken up again after a restart."""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from fedplat.durable import make_private_dir, write_atomic
from fedplat.errors import ConflictError, NotFoundError, SpecError, StoreError
from fedplat.home import ServerHome
from fedplat.privacy.planning import check_metrics
from fedplat.spec import RunSpec
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.driver import RunDriver, RunLive
from fedplat_server.registry import Registry
from fedplat_server.road import Road
from fedplat_server.staging import Staging
from fedplat_server.store import Run, Store
from fedplat_server.superlink import Link
from fedplat_server.transitions import RunState, is_final
from fedplat_server.turns import Turns

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
    road: Road
    registry: Registry
    on_end: Callable[[str], None]
    ca_fingerprint: str = ""
    _running: dict[str, _Running] = field(default_factory=dict)
    _held: set[str] = field(default_factory=set)
    _turns: Turns = field(default_factory=Turns)
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
        check_metrics(spec)

    def recover(self) -> list[str]:
        """Take up the runs that the last process left unfinished; paused ones stay paused."""
        runs = [run for run in self.store.runs.unfinished() if run.id not in self._running]
        self._held |= {run.id for run in runs if run.state is RunState.PAUSED and _has_begun(run)}
        going_on = [run for run in runs if run.state is not RunState.PAUSED]
        for run in going_on:
            self._start(run, RunSpec.model_validate(run.spec))
        return [run.id for run in going_on]

    def resume(self, run_id: str, from_round: int | None = None, *, actor: str = "admin") -> Run:
        """Begin a child run from a checkpoint of a run that is over or paused: same spec, same rounds from there on."""
        parent = self.store.runs.get(run_id)
        if run_id in self._running:
            raise ConflictError(f"run {run_id} is {parent.state}", hint=f"fedplat run pause {run_id} first")
        return self._child(parent, parent.rounds_committed if from_round is None else from_round, actor)

    def _child(self, parent: Run, number: int, actor: str) -> Run:
        spec = RunSpec.model_validate(parent.spec)
        if number >= spec.rounds.count:
            raise ConflictError(
                f"run {parent.id} has all its {spec.rounds.count} rounds", hint="name an earlier one with --from-round"
            )
        child_id = _run_id(spec.name)
        mine = Checkpoints(self.home.checkpoints(child_id), spec.hash)
        make_private_dir(self.home.run(child_id))
        Checkpoints(self.home.checkpoints(parent.id), spec.hash).copy_to(mine, number)
        child = self.store.runs.create(
            run_id=child_id,
            name=spec.name,
            spec=spec.model_dump(mode="json"),
            spec_hash=spec.hash,
            rounds_planned=spec.rounds.count,
            parent_id=parent.id,
            rounds_committed=number,
            actor=actor,
        )
        self._start(child, spec)
        return child

    def _continue_as_child(self, run_id: str, number: int) -> str:
        return self._child(self.store.runs.get(run_id), number, "server").id

    def go_on(self, run_id: str) -> Run:
        """Continue a paused run."""
        run = self.store.runs.get(run_id)
        if run.state is not RunState.PAUSED or run_id in self._running:
            raise ConflictError(f"run {run_id} is {run.state}, not paused")
        self._start(run, RunSpec.model_validate(run.spec))
        return run

    def _start(self, run: Run, spec: RunSpec) -> None:
        parts = (self.home, self.store, self.link, self.road, self.registry, self._turns)
        driver = RunDriver(run.id, spec, *parts, self._continue_as_child, self.ca_fingerprint)
        thread = threading.Thread(target=self._drive, args=(driver,), name=f"run-{run.id}", daemon=True)
        with self._lock:
            self._running[run.id] = _Running(driver, thread)
            self._held.discard(run.id)
        thread.start()

    def _drive(self, driver: RunDriver) -> None:
        try:
            driver.drive()
        finally:
            held = self._keeps_silos(driver.run_id)
            if not self._can_go_on(driver.run_id):
                self._forget_uploads(driver.run_id)
            with self._lock:
                self._running.pop(driver.run_id, None)
                self._held |= {driver.run_id} if held else set()
            self.registry.forget_run(driver.run_id)
            self.on_end(driver.run_id)

    def _forget_uploads(self, run_id: str) -> None:
        """A run that is over takes up its open round never again."""
        try:
            Staging(self.home.staging(run_id)).clear()
        except OSError as error:
            _log.warning("uploads of run %s are still on disk: %s", run_id, error)

    def _can_go_on(self, run_id: str) -> bool:
        try:
            return not is_final(self.store.runs.get(run_id).state)
        except StoreError:
            return True

    def _keeps_silos(self, run_id: str) -> bool:
        try:
            run = self.store.runs.get(run_id)
        except StoreError:
            return True
        return not is_final(run.state) and (run.state is not RunState.PAUSED or _has_begun(run))

    def live(self, run_id: str) -> RunLive | None:
        """What a run is doing right now; None if it is not running here."""
        running = self._running.get(run_id)
        return running.driver.live if running else None

    def is_live(self, run_id: str, silo: str) -> bool:
        """Whether a silo should keep what it has of this run."""
        running = self._running.get(run_id)
        return running.driver.wants(silo) if running else run_id in self._held

    def stop(self, run_id: str, *, actor: str = "admin") -> Run:
        """Stop a run for good; what it has committed stays. Waits until it has stopped."""
        run = self._halt(run_id, RunState.STOPPED, actor)
        if run.state is RunState.PAUSED:
            run = self.store.runs.set_state(run_id=run_id, state=RunState.STOPPED, reason="stopped by its owner")
            self._held.discard(run_id)
            self._forget_uploads(run_id)
            self.on_end(run_id)
        return run

    def pause(self, run_id: str, *, actor: str = "admin") -> Run:
        """Pause a run until it is continued; silos keep what they have of it. Waits until it has paused."""
        return self._halt(run_id, RunState.PAUSED, actor)

    def _halt(self, run_id: str, become: RunState, actor: str) -> Run:
        run = self.store.runs.get(run_id)
        # The same again is no conflict: whoever lost the answer asks for it.
        if is_final(run.state) and run.state is not become:
            raise ConflictError(f"run {run_id} is {run.state} already")
        running = self._running.get(run_id)
        if running is not None:
            if not is_final(run.state) and running.driver.asked_to is not become:
                self.store.events.append(kind=f"run.asked_to_be_{become}", actor=actor, run_id=run_id)
                running.driver.stop(become)
                self.link.wake_runs()
            running.thread.join(timeout=30)
        return self.store.runs.get(run_id)

    def close(self) -> None:
        """The server goes down: runs stay as they are in the store and go on at the next start."""
        with self._lock:
            running = list(self._running.values())
        for one in running:
            one.driver.stop(None)
        self.link.wake_runs()
        for one in running:
            one.thread.join(timeout=5)


def _has_begun(run: Run) -> bool:
    """Whether a paused run keeps its silos: one that still recruits leaves them to others, and asks them anew."""
    return run.layout is not None


def _run_id(name: str) -> str:
    """Readable, unique, and legal in paths and addresses."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    return f"{slug}-{secrets.token_hex(3)}"
