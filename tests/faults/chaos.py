"""The chaos campaign: a real server and four real silos (one with two workers), killed at random moments.

    python tests/faults/chaos.py [--kills N] [--seed S] [--rounds R] [--json]

Every kill is `kill -9` of a randomly chosen process (server, silo or worker), which is started again after a random
pause (a worker is started again by its silo). Some kills wait for a rare state, so that every state is hit. In the end
the rounds in SQL, the files on disk and the final weights are compared with a run that nobody disturbed.

`recovery_p95_s`: from the moment the killed process is back to the next change of a round's state in SQL, less the
training time of the silo that this change waited for.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.federation import Federation, federation, wait_until

SILOS = ("silo-a", "silo-b", "silo-c", "silo-d")
WITH_TWO_WORKERS = "silo-a"
TARGETS = ("server", "server", *SILOS, "worker", "worker")
RARE = ("uploading", "aggregating", "between")

SPEC = """
name = "chaos"
seed = 11
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
timeout_s = 600
[silos]
minimum = 4
names = ["silo-a", "silo-b", "silo-c", "silo-d"]
[training]
steps = {steps}
batch_size = 16
learning_rate = 0.05
local_checkpoint_steps = 500
[checkpoint]
keep_last = 2
"""


@dataclass
class Kill:
    """One kill: whom, in which state of the round, and how long the recovery took."""

    target: str
    state: str
    recovery_s: float | None = None


@dataclass
class Campaign:
    """A federation under fire."""

    fed: Federation
    random: random.Random
    run: str
    kills: list[Kill] = field(default_factory=list)

    @property
    def database(self) -> Path:
        """The server's SQLite file."""
        return self.fed.folder / "server" / "server" / "fedplat.db"

    def state(self) -> str:
        """The state of the newest round, as SQL says it: training, uploading, aggregating or between rounds."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as sql:
            query = "select number, state from rounds where run_id = ? order by number desc limit 1"
            row = sql.execute(query, (self.run,)).fetchone()
            if row is None or row[1] == "committed":
                return "between"
            query = "select count(*) from silo_rounds where run_id = ? and round_number = ? and state = 'uploaded'"
            uploaded = sql.execute(query, (self.run, row[0])).fetchone()[0]
        return "uploading" if row[1] == "training" and uploaded else str(row[1])

    def rows(self) -> list[tuple[Any, ...]]:
        """Everything that a change of a round's state changes."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as sql:
            rounds = "select number, step, state from rounds where run_id = ? order by 1"
            columns = "round_number, silo_name, state, seconds_training"
            silos = f"select {columns} from silo_rounds where run_id = ? order by 1, 2"
            return [*sql.execute(rounds, (self.run,)), *sql.execute(silos, (self.run,))]

    def is_over(self) -> bool:
        """Whether the run has ended."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as sql:
            state = sql.execute("select state from runs where id = ?", (self.run,)).fetchone()[0]
        return state in ("finished", "failed", "stopped", "paused")

    def strike(self, hunt: str | None) -> bool:
        """One kill; False if the run was over before it."""
        deadline = time.monotonic() + (20 if hunt else self.random.uniform(0.2, 4.0))
        while time.monotonic() < deadline and not self.is_over():
            if hunt and self.state() == hunt:
                break
            time.sleep(0.001 if hunt else 0.02)
        if self.is_over():
            return False
        target = "server" if hunt in ("aggregating", "between") else self.random.choice(TARGETS)
        kill = Kill(target, self.state())
        self._kill(target)
        self.kills.append(kill)
        time.sleep(self.random.uniform(0.0, 1.5))
        self._start(target)
        self._await_progress(kill)
        return True

    def _kill(self, target: str) -> None:
        if target == "worker":
            pid = self.random.choice(worker_pids(self.fed) or [0])
            if pid:
                subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
        else:
            self.fed.kill(target)

    def _start(self, target: str) -> None:
        if target == "server":
            self.fed.start_server()
        elif target in SILOS:
            join(self.fed, target)

    def _await_progress(self, kill: Kill) -> None:
        """Until a round's state changes: that is when the run has recovered."""
        begun, before = time.monotonic(), self.rows()
        while self.rows() == before and not self.is_over():
            if time.monotonic() - begun > 120:
                raise AssertionError(f"no progress in 120 s after {kill}\n{self.fed.all_logs()}")
            time.sleep(0.02)
        waited_s = time.monotonic() - begun
        training_s = max((row[3] or 0.0 for row in self.rows()[-len(SILOS) * 2 :] if len(row) == 4), default=0.0)
        kill.recovery_s = max(0.0, waited_s - training_s)


def worker_pids(fed: Federation) -> list[int]:
    """The training workers of all silos."""
    own = {str(p.pid) for p in fed.processes.values()}
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and "trainer.worker" in (folder / "cmdline").read_text():
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                if parent in own:
                    found.append(int(folder.name))
    return found


def join(fed: Federation, silo: str) -> None:
    """Start a silo by the same command, every time."""
    workers = ("--workers", "2") if silo == WITH_TWO_WORKERS else ()
    fed.join(silo, *workers, data={"table": fed.folder / f"{silo}.csv"}, wait=True)


def write_data(fed: Federation) -> str:
    """A table for each silo; returns the spec's features."""
    source = random.Random(5)
    for silo in SILOS:
        lines = ["a,b,c,y"]
        for _ in range(200):
            a, b, c = (source.gauss(0, 1) for _ in range(3))
            lines.append(f"{a:.6f},{b:.6f},{c:.6f},{'yes' if a + b * c > 0 else 'no'}")
        (fed.folder / f"{silo}.csv").write_text("\n".join(lines) + "\n")
    return ", ".join(f'{{ column = "{name}", kind = "numeric" }}' for name in "abc")


@contextmanager
def stage() -> Iterator[tuple[Federation, str]]:
    """Server and silos, and the features of their data."""
    with federation() as fed:
        features = write_data(fed)
        for silo in SILOS:
            join(fed, silo)
        yield fed, features


def run_campaign(kills: int, seed: int, rounds: int, steps: int) -> dict[str, Any]:
    """The disturbed run beside an undisturbed one of the same spec, in the same federation."""
    with stage() as (fed, features):
        text = SPEC.format(rounds=rounds, steps=steps, features=features)
        reference = fed.wait_for(fed.submit(text), timeout_s=1200)
        campaign = Campaign(fed, random.Random(seed), fed.submit(text))
        wait_until(lambda: bool(campaign.rows()) or campaign.is_over(), 120, fed.all_logs)
        runs = [campaign.run]
        while len(campaign.kills) < kills:
            hunt = campaign.random.choice(RARE) if campaign.random.random() < 0.4 else None
            if not campaign.strike(hunt):
                check(fed, campaign.run)
                campaign.run = fed.submit(text)
                runs.append(campaign.run)
                wait_until(lambda: bool(campaign.rows()) or campaign.is_over(), 120, fed.all_logs)
        views = [fed.wait_for(run, timeout_s=1200) for run in runs]
        return report(fed, reference, views, campaign.kills)


def check(fed: Federation, run: str) -> None:
    """A run that is over is finished."""
    fed.wait_for(run, timeout_s=60)


def report(
    fed: Federation, reference: dict[str, Any], views: list[dict[str, Any]], kills: list[Kill]
) -> dict[str, Any]:
    """What the rows and files say."""
    planned = range(1, reference["rounds_planned"] + 1)
    gaps = sum([r["number"] for r in view["rounds"] if r["state"] == "committed"] != list(planned) for view in views)
    times = sorted(k.recovery_s for k in kills if k.recovery_s is not None)
    return {
        "kills": len(kills),
        "kills_by_target": dict(Counter(k.target for k in kills)),
        "kills_by_state": dict(Counter(k.state for k in kills)),
        "runs": len(views),
        "rounds_committed": sum(view["rounds_committed"] for view in views),
        "gaps": gaps,
        "orphans": len(orphans(fed, [reference, *views])),
        "bit_identical": all(view["weights_sha256"] == reference["weights_sha256"] for view in views),
        "recovery_p95_s": times[min(len(times) - 1, int(0.95 * len(times)))] if times else 0.0,
    }


def orphans(fed: Federation, views: list[dict[str, Any]]) -> list[Path]:
    """Files of the server that no row owns: anything but the checkpoints that `keep_last` keeps."""
    root = fed.folder / "server" / "server" / "runs"
    owned = set()
    for view in views:
        last = view["rounds_committed"]
        for number in range(max(0, last - 1), last + 1):
            owned |= {
                root / view["id"] / "checkpoints" / f"round-{number:07d}{end}" for end in (".json", ".safetensors")
            }
    return [path for path in root.rglob("*") if path.is_file() and path not in owned]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3000, help="training steps a round; 3000 take about 3 s")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run_campaign(options.kills, options.seed, options.rounds, options.steps)
    print(json.dumps(result) if options.json else "\n".join(f"{k:18} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
