"""The demo: a server and four hospitals as real processes on this machine, over TLS, private and with real data.

It types what a person would type; every command is printed, so that the same can be done by hand.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fedplat.demo_stage import Stage, free_port, interruptible, place, say
from fedplat.errors import ConnectionLostError, FedplatError

HOSPITALS = ("riverside", "st-anna", "northfield", "lakeview")
WITH_TWO_WORKERS = "riverside"
VICTIM = "lakeview"  # killed in the middle of a round
GOES_ON_AFTER_S = 8  # without it
DATASET = "breast-cancer"
PATIENT = "patient_id"
BUDGET, EPSILON, DELTA = 8, 2, 1e-3  # for life; of the run; well below 1 / number of patients
TEST_SILO = "{}-test"  # has the same file, and no budget
PATIENTS = {"# patient =": "patient ="}
PRIVATE = {  # in what `run init` writes
    'mode = "none"': 'mode = "record"',
    '# metrics = "unprotected"': 'metrics = "unprotected"',
    "# delta = 1e-5": f"delta = {DELTA}",
    "# epsilon = 8.0": f"epsilon = {EPSILON}",
    "# expected_batch_size = 32": "expected_batch_size = 16",
    'weighting = "examples"': 'weighting = "uniform"',
    "learning_rate = 0.1\n": "learning_rate = 0.5\n",
}


def run_demo(*, keep: bool, folder: Path | None, rounds: int, reports: Path) -> None:
    """The whole play; the privacy report stays in `reports`. FedplatError if a part of it fails."""
    begun = time.monotonic()
    with ExitStack() as stack:
        stage = Stage(stack.enter_context(place(folder, keep=keep)), free_port())
        stack.callback(stage.stop)
        stack.enter_context(interruptible())
        _cast(stage)
        _introduce(stage)
        private = _run_with_a_death(stage, _write_spec(stage, "private", rounds, PRIVATE))
        report = _report(stage, private["id"], reports)
        spec = _write_spec(stage, "not-private", rounds)
        _compare(stage, spec, {"private": private, "not private": _run_without_privacy(stage, spec)})
        _tell_privacy(private, report)
        _farewell(stage, spec, keep=keep, seconds=time.monotonic() - begun)


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
        _join(stage, name, _data(stage, name))


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


def _data(stage: Stage, hospital: str) -> Path:
    return stage.folder / "data" / f"{hospital}.csv"


def _join(stage: Stage, name: str, data: Path, *, is_shown: bool = True) -> None:
    invite = stage.folder / f"{name}.invite"
    invite.touch(mode=0o600)
    invite.write_text(stage.ask("silo", "invite", name)["invite"], encoding="utf-8")
    words = ["client", "join", "--silo", name, "--invite", f"@{invite}", "--data", f"{DATASET}={data}"]
    words += ["--workers", "2"] if name == WITH_TWO_WORKERS else []
    if is_shown:
        say(f"$ fedplat {' '.join(words)}   ({_describe(data)})")
    _start(stage, name, words)


def _start(stage: Stage, name: str, words: list[str]) -> None:
    stage.start(name, *words, "--home", str(stage.hospital_home()))


def _ask_hospital(stage: Stage, name: str, *words: str) -> Any:
    return stage.ask("client", *words, "--silo", name, "--home", str(stage.hospital_home()))


def _introduce(stage: Stage) -> None:
    """The server introduces the hospitals to each other and could invent one: they compare fingerprints by phone. And
    each says how much may ever be learned about one of its patients."""
    stage.wait_until("the hospitals did not connect", lambda: _are_connected(stage, HOSPITALS))
    limits = ("--dataset", DATASET, "--epsilon", str(BUDGET), "--delta", str(DELTA), "--patient", PATIENT)
    with ThreadPoolExecutor(len(HOSPITALS)) as pool:
        told = pool.map(lambda name: _ask_hospital(stage, name, "fingerprint")["silo"], HOSPITALS)
        read_out = dict(zip(HOSPITALS, told, strict=True))

        def prepare(name: str) -> None:
            for peer in HOSPITALS:
                if peer != name:
                    _ask_hospital(stage, name, "peers", "pin", peer, read_out[peer])
            _ask_hospital(stage, name, "budget", "set", *limits)

        list(pool.map(prepare, HOSPITALS))
    say(f"$ fedplat client peers pin {HOSPITALS[1]} {read_out[HOSPITALS[1]][:16]}... --silo {HOSPITALS[0]}")
    say("  and so on: each hospital has confirmed the keys of the other three, as administrators do by phone")
    say(f"$ fedplat client budget set {' '.join(limits)} --silo {HOSPITALS[0]}")
    say("  and so on: that is what all runs together may cost each of its patients, for life")


def _are_connected(stage: Stage, names: tuple[str, ...]) -> bool:
    return {silo["name"] for silo in stage.ask("silo", "list") if silo["connected"]} >= set(names)


def _describe(data: Path) -> str:
    lines = data.read_text(encoding="utf-8").splitlines()[1:]
    malignant = sum(line.endswith("malignant") for line in lines)
    return f"{len(lines)} patients, {malignant / len(lines):.0%} malignant"


def _write_spec(stage: Stage, name: str, rounds: int, more: Mapping[str, str] | None = None) -> Path:
    """What `fedplat run init` writes, with the demo's name, rounds, patients and `more`."""
    changes = {'name = "breast-cancer"\nseed': f'name = "{name}"\nseed', "count = 10": f"count = {rounds}"}
    changes |= {"timeout_s = 600.0": f"timeout_s = {GOES_ON_AFTER_S}", **PATIENTS, **(more or {})}
    path = stage.folder / f"{name}.toml"
    path.write_text(edited(stage.run("run", "init", "--task", "tabular"), changes), encoding="utf-8")
    return path


def edited(text: str, changes: Mapping[str, str]) -> str:
    """A spec with other lines in it. FedplatError if one of those to be exchanged is not there."""
    for old, new in changes.items():
        if old not in text:
            raise FedplatError(f"`fedplat run init` writes no line with {old!r}", hint="The demo does not fit it.")
        text = text.replace(old, new, 1)
    return text


def _submit(stage: Stage, spec: Path) -> str:
    say()
    run: str = stage.ask("run", "submit", str(spec))["id"]
    say(f"$ fedplat run submit {spec}")
    return run


def _view(stage: Stage, run: str) -> dict[str, Any]:
    view: dict[str, Any] = stage.ask("run", "show", run)
    return view


def _watch(stage: Stage, run: str) -> dict[str, Any]:
    if stage.show("run", "watch", run):
        raise FedplatError(f"the run {run} did not finish", hint=f"the logs are in {stage.folder} (use --keep)")
    return _view(stage, run)


def _run_with_a_death(stage: Stage, spec: Path) -> dict[str, Any]:
    """A hospital is killed in the middle of a round: the others' sum is opened without it, and it comes back."""
    run = _submit(stage, spec)
    stage.wait_until("the run did not begin", lambda: len(_view(stage, run)["rounds"]) > 2)
    victim = stage.processes[VICTIM]
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    say(f"$ kill -9 {victim.pid}   ({VICTIM}, in the middle of a round, which waits for it {GOES_ON_AFTER_S} s)")
    stage.wait_until("the run did not go on", lambda: any(VICTIM in r["without"] for r in _view(stage, run)["rounds"]))
    say(f"$ fedplat client join --silo {VICTIM}   (by the same command, without an invite)")
    _start(stage, VICTIM, ["client", "join", "--silo", VICTIM])
    view = _watch(stage, run)
    _explain_masks(view)
    return view


def _run_without_privacy(stage: Stage, spec: Path) -> dict[str, Any]:
    """The hospitals refuse it; silos without a budget take part."""
    names = tuple(TEST_SILO.format(name) for name in HOSPITALS)
    say("\nWhat does privacy cost? The hospitals refuse the same run without it, for their patients have a budget.")
    say("So four more silos join, with the same files, and for once nobody in them is protected:")
    for hospital, name in zip(HOSPITALS, names, strict=True):
        _join(stage, name, _data(stage, hospital), is_shown=hospital == HOSPITALS[0])
    say("  and so on")
    stage.wait_until("the silos did not connect", lambda: _are_connected(stage, names))
    return _watch(stage, _submit(stage, spec))


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


def _report(stage: Stage, run: str, folder: Path) -> Path:
    """What the run can tell about a patient of any hospital, from what they have signed, and signed by the server."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / "federation.html"
    say()
    for words in (("privacy", "--run", run, "--output", str(path)), ("verify", str(path))):
        if stage.show("report", *words):
            raise FedplatError(f"there is no report on run {run}", hint=f"the logs are in {stage.folder} (use --keep)")
    return path


def _tell_privacy(view: Mapping[str, Any], report: Path) -> None:
    """What the private run has cost, as each hospital has signed it."""
    say(f"\nWhat the private run has cost each patient, at delta {DELTA:g}, by the hospitals' own ledgers:")
    for one in view["ledgers"]:
        say(f"  {one['silo_name']:12} epsilon {one['epsilon']:.2f} of {one['budget']:g}")
    say("  The model is within that; the figures of each round are not protected, and the report says so.")
    say(f"  {report}   tells the privacy officers all of it, signed.")


def _compare(stage: Stage, spec: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Each hospital alone, the federation, and all data in one place (which is what nobody may do)."""
    say("\nThe same model, measured on the test patients of all four hospitals:")
    paths = [str(_data(stage, name)) for name in HOSPITALS]
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
