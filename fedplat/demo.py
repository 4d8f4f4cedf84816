"""The demo: a server and four hospitals as real processes on this machine, over TLS, with real data.

It types what a person would type; every command is printed, so that the same can be done by hand.
"""

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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from fedplat.errors import ConnectionLostError, FedplatError

HOSPITALS = ("riverside", "st-anna", "northfield", "lakeview")
WITH_TWO_WORKERS = "riverside"
VICTIM = "lakeview"  # killed in the middle of a round
GOES_ON_AFTER_S = 8  # without it
DATASET = "breast-cancer"
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

    def ask(self, *words: str) -> Any:
        """The JSON that a command prints."""
        done = subprocess.run(  # noqa: S603
            [*FEDPLAT, *words, "--json"], env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise FedplatError(f"fedplat {' '.join(words)} failed: {done.stderr.strip()}", hint=f"see {self.folder}")
        return json.loads(done.stdout)

    def show(self, *words: str) -> int:
        """Run a command in front of the audience. Returns its exit status."""
        say(f"$ fedplat {' '.join(words)}")
        return subprocess.run([*FEDPLAT, *words], env=self.environment, check=False).returncode  # noqa: S603

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


def run_demo(*, keep: bool, folder: Path | None, rounds: int) -> None:
    """The whole play. FedplatError if a part of it fails."""
    begun = time.monotonic()
    with ExitStack() as stack:
        stage = Stage(stack.enter_context(_place(folder, keep=keep)), _free_port())
        stack.callback(stage.stop)
        stack.enter_context(_interruptible())
        _cast(stage)
        _introduce(stage)
        specs = {name: _write_spec(stage, name, rounds) for name in ("fedavg", "fedprox")}
        runs = {"fedavg": _run_with_a_death(stage, specs["fedavg"]), "fedprox": _run(stage, specs["fedprox"])}
        _compare(stage, specs["fedavg"], runs)
        _farewell(stage, specs["fedavg"], keep=keep, seconds=time.monotonic() - begun)


@contextmanager
def _place(folder: Path | None, *, keep: bool) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Short: Unix socket paths have at most 107 bytes.
    place = Path(tempfile.mkdtemp(prefix="fedplat-demo-", dir=folder))
    try:
        yield place
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does."""
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _cast(stage: Stage) -> None:
    """Data, server, invites, hospitals."""
    say("Four hospitals will train one model; no record leaves its hospital.")
    data = stage.folder / "data"
    data.mkdir()
    command = [sys.executable, "-m", "fedplat_silo.demo_data", str(data)]
    if subprocess.run(command, check=False).returncode:  # noqa: S603
        raise FedplatError(
            "the demo's data could not be written", hint="pip install 'fedplat[silo]' brings what it needs"
        )
    stage.start("server", "server", "start", "--host", "127.0.0.1", "--name", "localhost", "--port", str(stage.port))
    _wait_for_server(stage)
    say(f"$ fedplat server start --name localhost --port {stage.port}")
    for name in HOSPITALS:
        _join(stage, name, data / f"{name}.csv")


def _wait_for_server(stage: Stage) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if stage.processes["server"].poll() is not None:
            break
        with suppress(FedplatError):
            stage.ask("silo", "list")
            return
        time.sleep(0.1)
    text = (stage.folder / "server.log").read_text(encoding="utf-8", errors="replace")
    raise ConnectionLostError(f"the server did not start: {text.strip()[-500:]}")


def _join(stage: Stage, name: str, data: Path) -> None:
    invite = stage.folder / f"{name}.invite"
    invite.touch(mode=0o600)
    invite.write_text(stage.ask("silo", "invite", name)["invite"], encoding="utf-8")
    words = ["client", "join", "--silo", name, "--invite", f"@{invite}", "--data", f"{DATASET}={data}"]
    words += ["--workers", "2"] if name == WITH_TWO_WORKERS else []
    say(f"$ fedplat {' '.join(words)}   ({_describe(data)})")
    _start(stage, name, words)


def _start(stage: Stage, name: str, words: list[str]) -> None:
    stage.start(name, *words, "--home", str(stage.hospital_home()))


def _introduce(stage: Stage) -> None:
    """The server introduces the hospitals to each other and could invent one: they compare fingerprints by phone."""
    _await(stage, "the hospitals did not connect", lambda: all(s["connected"] for s in _hospitals(stage)))
    home = ("--home", str(stage.hospital_home()))
    read_out = {name: stage.ask("client", "fingerprint", "--silo", name, *home)["silo"] for name in HOSPITALS}
    for name in HOSPITALS:
        for peer in HOSPITALS:
            if peer != name:
                stage.ask("client", "peers", "pin", peer, read_out[peer], "--silo", name, *home)
    say(f"$ fedplat client peers pin {HOSPITALS[1]} {read_out[HOSPITALS[1]][:16]}... --silo {HOSPITALS[0]}")
    say("  and so on: each hospital has confirmed the keys of the other three, as administrators do by phone")


def _hospitals(stage: Stage) -> list[dict[str, Any]]:
    found = [silo for silo in stage.ask("silo", "list") if silo["name"] in HOSPITALS]
    return found if len(found) == len(HOSPITALS) else [{"connected": False}]


def _await(stage: Stage, what: str, check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not check():
        if time.monotonic() > deadline:
            raise FedplatError(f"{what} within a minute", hint=f"the logs are in {stage.folder} (use --keep)")
        time.sleep(0.2)


def _describe(data: Path) -> str:
    lines = data.read_text(encoding="utf-8").splitlines()[1:]
    malignant = sum(line.endswith("malignant") for line in lines)
    return f"{len(lines)} patients, {malignant / len(lines):.0%} malignant"


def _write_spec(stage: Stage, strategy: str, rounds: int) -> Path:
    """What `fedplat run init` writes, with the demo's name, rounds and strategy."""
    command = [*FEDPLAT, "run", "init", "--task", "tabular"]
    text = subprocess.run(command, env=stage.environment, capture_output=True, text=True, check=True).stdout  # noqa: S603
    changes = {'name = "breast-cancer"\nseed': f'name = "{strategy}"\nseed', "count = 10": f"count = {rounds}"}
    changes |= {'name = "fedavg"': f'name = "{strategy}"', "timeout_s = 600.0": f"timeout_s = {GOES_ON_AFTER_S}"}
    if strategy == "fedprox":
        changes["# proximal_mu"] = "proximal_mu"
    for old, new in changes.items():
        text = text.replace(old, new, 1)
    path = stage.folder / f"{strategy}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _run(stage: Stage, spec: Path) -> dict[str, Any]:
    say()
    if stage.show("run", "submit", str(spec), "--watch"):
        raise FedplatError(
            f"the run of {spec.name} did not finish", hint=f"the logs are in {stage.folder} (use --keep)"
        )
    return _newest(stage)


def _run_with_a_death(stage: Stage, spec: Path) -> dict[str, Any]:
    """A hospital is killed in the middle of a round: the others' sum is opened without it, and it comes back."""
    say()
    run = stage.ask("run", "submit", str(spec))["id"]
    say(f"$ fedplat run submit {spec}")
    _await(stage, "the run did not begin", lambda: len(_newest(stage)["rounds"]) > 2)
    os.killpg(stage.processes[VICTIM].pid, signal.SIGKILL)
    stage.processes[VICTIM].wait()
    pid = stage.processes[VICTIM].pid
    say(f"$ kill -9 {pid}   ({VICTIM}, in the middle of a round, which waits for it {GOES_ON_AFTER_S} s)")
    _await(stage, "the run did not go on", lambda: any(VICTIM in r["without"] for r in _newest(stage)["rounds"]))
    say(f"$ fedplat client join --silo {VICTIM}   (by the same command, without an invite)")
    _start(stage, VICTIM, ["client", "join", "--silo", VICTIM])
    if stage.show("run", "watch", run):
        raise FedplatError(f"the run {run} did not finish", hint=f"the logs are in {stage.folder} (use --keep)")
    view = _newest(stage)
    _explain_masks(view)
    return view


def _newest(stage: Stage) -> dict[str, Any]:
    newest = stage.ask("run", "list")[-1]["id"]
    view: dict[str, Any] = stage.ask("run", "show", newest)
    return view


def _explain_masks(view: dict[str, Any]) -> None:
    """What secure aggregation has done, in numbers."""
    steps = [step for step in view["secure_steps"] if step["cohort"] is not None]
    if not steps:
        return
    phases = ("masking", "agreeing", "unmasking")
    worst_s = max(sum(step[f"seconds_{phase}"] or 0.0 for phase in phases) for step in steps)
    threshold, confirmed = steps[0]["threshold"], steps[0]["num_confirmed"]
    say("  Every update was masked: the server has seen sums over hospitals, and no hospital's update.")
    say(f"  {threshold} of {len(HOSPITALS)} must agree to open a sum; each has confirmed {confirmed} others' keys.")
    say(f"  That took at most {worst_s:.2f} s of a round.  fedplat run show {view['id']} tells it round by round.")


def _compare(stage: Stage, spec: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Each hospital alone, the federation, and all data in one place (which is what nobody may do)."""
    say("\nThe same model, measured on the test patients of all four hospitals:")
    paths = [str(stage.folder / "data" / f"{name}.csv") for name in HOSPITALS]
    words = ["client", "train-alone", "--spec", str(spec), "--data", f"{DATASET}={','.join(paths)}", "--pooled"]
    alone = stage.ask(*words, "--home", str(stage.hospital_home()))
    rows = [(f"{name} alone", alone[str(i)]) for i, name in enumerate(HOSPITALS)]
    rows += [(f"federation ({name})", _last_test(view)) for name, view in runs.items()]
    rows += [("all data pooled", alone["pooled"])]
    say(f"  {'':24} {'accuracy':>9} {'f1':>8} {'auroc':>8} {'loss':>8}")
    for name, figures in rows:
        cells = (f"{figures.get(key, float('nan')):8.4f}" for key in ("accuracy", "f1", "auroc", "loss"))
        say(f"  {name:24}  {' '.join(cells)}")
    for name, view in runs.items():
        seconds = [r["seconds"] for r in view["rounds"] if r["state"] == "committed"]
        say(f"  {name}: {sum(seconds) / len(seconds):.2f} s a round, {len(seconds)} rounds committed to SQL")


def _last_test(view: dict[str, Any]) -> dict[str, Any]:
    last = max((e for e in view["evaluations"] if e["split"] == "test"), key=lambda e: e["round_number"])
    return {"loss": last["loss"], **last["metrics"]}


def _farewell(stage: Stage, spec: Path, *, keep: bool, seconds: float) -> None:
    say(f"\nDone in {seconds:.0f} s.")
    if not keep:
        say("fedplat demo --keep leaves the data, homes, specs and the database for a look.")
        return
    say(f"  data      {stage.folder}/data/*.csv")
    say(f"  spec      {spec}")
    say(f"  database  {stage.folder}/server/server/fedplat.db")
    say(f"  homes     {stage.folder}/server (server), {stage.hospital_home()} (hospitals)")
    say("To run the same by hand, type the lines above that begin with $, with")
    say(f"  export FEDPLAT_HOME={stage.folder}/server")
