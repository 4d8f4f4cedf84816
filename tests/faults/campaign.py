"""A federation under fire: a real server and four real silos (one with two workers), and kills at random moments."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.federation import Federation, federation, wait_until

SILOS = ("silo-a", "silo-b", "silo-c", "silo-d")
WITH_TWO_WORKERS = "silo-a"
STATES = ("training", "uploading", "aggregating", "between")
RARE = ("uploading", "aggregating", "between")
TARGETS = ("server", "server", "worker", "worker")
OF_THE_SERVER = ("aggregating", "between")  # these last for milliseconds, and follow the last upload

SPEC = """
name = "chaos"
seed = {seed}
[task]
name = "tabular"
[task.options]
model = "mlp"
hidden = [16]
target = {{ column = "y", categories = ["no", "yes"] }}
features = [{features}]
[data]
name = "table"
[rounds]
count = {rounds}
timeout_s = {timeout_s}
[silos]
minimum = {minimum}
names = [{silos}]
[training]
steps = {steps}
batch_size = 16
learning_rate = 0.05
{resuming}
[checkpoint]
keep_last = {keep_last}
"""
RESUMING = "local_checkpoint_steps = 200"
SECURE = """
[secure_aggregation]
enabled = true
"""
DELTA = 1e-4
PRIVATE = f"""
[strategy]
weighting = "uniform"
[privacy]
mode = "record"
metrics = "unprotected"
noise_multiplier = 20.0
delta = {DELTA}
"""


def make_spec(
    *,
    rounds: int,
    steps: int,
    seed: int = 11,
    silos: tuple[str, ...] = SILOS,
    minimum: int | None = None,
    timeout_s: float = 600,
    keep_last: int = 2,
    secure: bool = False,
    private: bool = False,
) -> str:
    """The spec of a run over the tables of `write_data`; by default every silo has to be in every round. Private runs
    do not resume a round half way: each of its steps would be spent twice."""
    features = ", ".join(f'{{ column = "{name}", kind = "numeric" }}' for name in "abc")
    return SPEC.format(
        rounds=rounds,
        steps=steps,
        seed=seed,
        silos=", ".join(f'"{silo}"' for silo in silos),
        minimum=len(silos) if minimum is None else minimum,
        timeout_s=timeout_s,
        keep_last=keep_last,
        features=features,
        resuming="" if private else RESUMING,
    ) + (SECURE * secure + PRIVATE * private)


def write_data(folder: Path, silos: tuple[str, ...] = SILOS) -> None:
    """A table for each silo."""
    source = random.Random(5)
    for silo in silos:
        lines = ["a,b,c,y"]
        for _ in range(200):
            a, b, c = (source.gauss(0, 1) for _ in range(3))
            lines.append(f"{a:.6f},{b:.6f},{c:.6f},{'yes' if a + b * c > 0 else 'no'}")
        (folder / f"{silo}.csv").write_text("\n".join(lines) + "\n")


def num_workers(silo: str) -> int:
    """How many workers train at a silo."""
    return 2 if silo == WITH_TWO_WORKERS else 1


def join(fed: Federation, silo: str, *, wait: bool = True, policy: str = "max_threads = 1\n") -> None:
    """Start a silo by the same command, every time. One thread a worker: the bits must not depend on the machine."""
    workers = ("--workers", str(num_workers(silo)))
    fed.join(silo, *workers, data={"table": fed.folder / f"{silo}.csv"}, wait=wait, policy=policy)


@contextmanager
def stage(silos: tuple[str, ...] = SILOS, policy: str = "max_threads = 1\n") -> Iterator[Federation]:
    """Server and silos, up."""
    with federation() as fed:
        write_data(fed.folder, silos)
        for silo in silos:
            join(fed, silo, wait=False, policy=policy)
        fed.wait_connected(*silos, timeout_s=60)
        yield fed


def round_s(view: dict[str, Any]) -> float:
    """How long a round of a finished run took, in seconds."""
    return float(statistics.median(r["seconds"] for r in view["rounds"]))


@dataclass
class Kill:
    """One kill: of whom, and in which state of the round. `waited_s`: from the process being back to the next state of
    a round; `last`: whose updates (run, round, silo) were the last to come in that time, at the same look."""

    target: str
    state: str
    waited_s: float | None = None
    last: set[tuple[str, int, str]] = field(default_factory=set)


@dataclass
class Campaign:
    """Kills in one run after another. `round_s`: how long an undisturbed round takes."""

    fed: Federation
    random: random.Random
    run: str
    round_s: float
    silos: list[str] = field(default_factory=lambda: list(SILOS))
    kills: list[Kill] = field(default_factory=list)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """What SQL says of the run (`?`), without a lock."""
        path = self.fed.folder / "server" / "server" / "fedplat.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as sql:
            return sql.execute(query, (self.run,)).fetchall()

    def rounds(self) -> list[tuple[Any, ...]]:
        """Number, step and state of each round."""
        return self.ask("select number, step, state from rounds where run_id = ? order by number")

    def uploads(self) -> set[tuple[int, str]]:
        """The silos' updates that the server has, by round and name."""
        query = "select round_number, silo_name from silo_rounds where state in ('uploaded', 'included') and run_id = ?"
        return {(number, silo) for number, silo in self.ask(query)}

    def state(self) -> str:
        """Of the newest round: training, uploading (some silos have), aggregating or between rounds; or closing."""
        if self.ask("select state from runs where id = ?") == [("finishing",)]:
            return "closing"
        number, _, state = (self.rounds() or [(0, 0, "committed")])[-1]
        if state in ("committed", "abandoned"):
            return "between"
        return "uploading" if state == "training" and any(n == number for n, _ in self.uploads()) else str(state)

    def is_over(self) -> bool:
        """Whether the run has ended."""
        state = self.ask("select state from runs where id = ?")[0][0]
        return state in ("finished", "failed", "stopped", "paused")

    def await_start(self) -> None:
        """Until the run's first round."""
        wait_until(lambda: bool(self.rounds()) or self.is_over(), 120, self.fed.all_logs)

    def next_hunt(self, num_left: int, least: int) -> str | None:
        """The state to wait for with the next kill, so that each has its `least`; None: a random moment."""
        have = Counter(kill.state for kill in self.kills)
        lacking = [state for state in STATES for _ in range(least - have[state])]
        if len(lacking) >= num_left or self.random.random() < 0.4:
            return self.random.choice(lacking or RARE)
        return None

    def strike(self, hunt: str | None = None) -> bool:
        """One kill and the start after it; False if the run was over before."""
        at = time.monotonic() + self.random.uniform(0.0, 1.2 * self.round_s)
        kill = None
        while kill is None and not self.is_over():
            state = self.state()
            is_near = hunt in OF_THE_SERVER and state == "uploading"
            if is_near or state == hunt or (hunt is None and time.monotonic() >= at):
                kill = self._kill(hunt)
            time.sleep(0.02)
        if kill is None:
            return False
        self.kills.append(kill)
        self._restart(kill.target)
        # Every fourth time the next kill comes into the recovery.
        if kill.state != "closing" and self.random.random() < 0.75:
            self._measure(kill)
        return True

    def _kill(self, hunt: str | None) -> Kill | None:
        """A kill in a state that is known for sure, for the server stands still; None if it is not the one hunted."""
        server = self.fed.processes["server"]
        server.send_signal(signal.SIGSTOP)
        target = "server" if hunt in OF_THE_SERVER else self.random.choice([*TARGETS, *self.silos])
        try:
            state = self._stalk(server, hunt) if hunt in OF_THE_SERVER else self.state()
            if self.is_over() or (hunt and state != hunt):
                return None
            if target == "worker" and not self._kill_worker():
                return None
            if target != "worker":
                self.fed.kill(target)
            return Kill(target, state)
        except sqlite3.OperationalError:  # it stands still in the middle of a lock
            return None
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGCONT)

    def _stalk(self, server: subprocess.Popen[bytes], hunt: str) -> str:
        """Lets the server go on for a moment at a time from the first upload to the state that is hunted."""
        before = STATES[1 : STATES.index(hunt)]
        while (state := self.state()) in before and not self.is_over():
            server.send_signal(signal.SIGCONT)
            time.sleep(self.random.uniform(0.0, 0.004))
            server.send_signal(signal.SIGSTOP)
        return state

    def _kill_worker(self) -> bool:
        """One of the processes below a silo's: a worker, or one of those that keep several workers running."""
        found = [pid for silo in self.silos for pid in offspring(self.fed.processes[silo].pid)]
        with suppress(ProcessLookupError):
            if found:
                os.kill(self.random.choice(found), signal.SIGKILL)
                return True
        return False

    def _restart(self, target: str) -> None:
        """By the same command, after a pause; a worker is started again by its silo, at once."""
        if target == "worker":
            return
        time.sleep(self.random.uniform(0.0, 1.5))
        if target == "server":
            self.fed.start_server()
        else:
            join(self.fed, target, policy="")

    def _measure(self, kill: Kill) -> None:
        """Until a round changes its state."""
        back, before, known = time.monotonic(), self.rounds(), self.uploads()
        has_changed = False
        while not has_changed:
            waited_s = time.monotonic() - back
            assert waited_s < 120, f"no progress in 120 s after {kill}\n{self.fed.all_logs()}"
            time.sleep(0.02)
            has_changed = self.rounds() != before or self.is_over()
            # After that look: the change follows the last update at once.
            if new := self.uploads() - known:
                known |= new
                kill.last = {(self.run, number, silo) for number, silo in new}
        kill.waited_s = time.monotonic() - back

    def recovery_s(self, kill: Kill) -> float | None:
        """From the process being back to the next state of a round, less what the silo that this state waited for
        trained in that time (of several, the one that trained least). Known when the round is committed."""
        query = "select seconds_training from silo_rounds where run_id = ? and round_number = ? and silo_name = ?"
        trained_s = min((self.fed.rows(query, *upload)[0][0] or 0.0 for upload in kill.last), default=0.0)
        return None if kill.waited_s is None else max(0.0, kill.waited_s - trained_s)


def offspring(pid: int) -> list[int]:
    """The processes below a process."""
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, path.read_text().split())
    return [*children, *(below for child in children for below in offspring(child))]
