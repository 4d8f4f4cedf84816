"""What users do, typed as they type it: real processes over TLS, killed and restarted as machines are."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.federation import Federation, add_constant, federation, wait_until
from tests.support.postgres import private_postgres

ALLOW_ALL = 'allowed_tasks = ["*"]\nmax_parallel_runs = 4\n'
ONE_AT_A_TIME = 'allowed_tasks = ["*"]\n'
SILOS = ("a", "b", "c")
PROMPT_S = 5.0  # 2 s on a machine that does nothing else; what hangs takes 24 s


@pytest.fixture(scope="module")
def running() -> Iterator[Federation]:
    """A server and three silos, each of which took its invite in another way."""
    with federation() as fed:
        for silo in SILOS:
            join_by_hand(fed, silo)
        fed.wait_connected(*SILOS)
        yield fed


@pytest.fixture
def fed(running: Federation) -> Iterator[Federation]:
    """The federation with everybody up and nothing to do, however the last test ended. No traceback on any console."""
    for left in (r["id"] for r in running.ask("/runs") if r["finished_at"] is None):
        running.command("run", "stop", left)
    for silo in SILOS:
        allow(running, silo, ALLOW_ALL)
        if silo not in running.processes or running.processes[silo].poll() is not None:
            running.join(silo, wait=False)
    running.wait_connected(*SILOS)
    yield running
    assert "Traceback" not in running.all_logs()
    assert "Traceback" not in (running.folder / "server" / "server" / "server.log").read_text()


def join_by_hand(fed: Federation, silo: str) -> None:
    """`a` reads its invite from standard input, `b` from a file, `c` has it on the command line."""
    line = fed.command("silo", "invite", silo)
    file = fed.folder / f"{silo}.invite"
    file.write_text(line)
    invite = {"a": "-", "b": f"@{file}", "c": line.strip()}[silo]
    data = fed.folder / "none.csv"
    data.write_text("nothing\n1\n")
    words = ("client", "join", "--silo", silo, "--home", str(fed.folder / "silos"))
    fed.start(silo, *words, "--invite", invite, "--data", f"none={data}", stdin=line if silo == "a" else "")


def allow(fed: Federation, silo: str, policy: str) -> None:
    wait_until(lambda: fed.silo_home(silo).exists(), 20, fed.all_logs)
    (fed.silo_home(silo) / "policy.toml").write_text(policy)


def plus(weights: np.ndarray, times: int) -> np.ndarray:
    """What `times` rounds of adding 0.01 make of float32 weights."""
    for _ in range(times):
        weights = weights + np.float32(0.01)
    return weights


def test_by_hand_from_submit_to_export(fed: Federation) -> None:
    spec = fed.folder / "study.toml"
    spec.write_text(add_constant(name="study-1", size=7, rounds=3, silos=SILOS, minimum=3))
    submitted = fed.json("run", "submit", str(spec))
    run = submitted["id"]

    lines = fed.command("run", "watch", run, "--json").splitlines()
    assert [json.loads(line)["final"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert json.loads(lines[-1])["state"] == "finished"

    shown, listed = fed.command("run", "show", run), fed.command("run", "list")
    assert f"run {run}: finished" in shown
    assert "rounds 3 of 3" in shown
    assert re.search(rf"{run} +finished +3/3", listed)
    assert len(re.findall(r"round +\d +[\d.]+ s  3 silos  loss", shown)) == 3

    target = fed.folder / "model"
    fed.command("run", "export", run, "--to", str(target))
    [(_, weights)] = load_file(target / "model.safetensors").items()
    assert weights.dtype == np.float32
    assert weights.tolist() == plus(np.zeros(7, np.float32), 3).tolist()
    exported = json.loads((target / "spec.json").read_text())
    canonical = json.dumps(exported["spec"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    ended = [fed.silo_home(silo) / "runs" / run / "ended" for silo in SILOS]
    wait_until(lambda: all(path.exists() for path in ended), 10)
    hashes = {submitted["spec_hash"], exported["hash"], hashlib.sha256(canonical.encode()).hexdigest()}
    hashes |= {path.read_text() for path in ended} | set(re.findall(r"spec (\w+)", shown))
    assert hashes == {submitted["spec_hash"]}
    metrics = json.loads((target / "metrics.json").read_text())
    assert [e["round_number"] for e in metrics["evaluations"] if e["split"] == "test"] == [0, 1, 2, 3]
    assert json.loads((target / "preprocessing.json").read_text()) == {}


def test_every_strategy_finishes(fed: Federation) -> None:
    silo_of = {"fedprox": "a", "fedavgm": "b", "fedadam": "c", "fedyogi": "a", "fedadagrad": "b"}
    runs = {
        name: fed.submit(add_constant(name=name, size=5, rounds=2, silos=(silo,), strategy=name))
        for name, silo in silo_of.items()
    }
    for name, run in runs.items():
        view = fed.wait_for(run)
        assert view["rounds_committed"] == 2, name
        assert np.isfinite(fed.weights(run)["weights.0"]).all()
    assert fed.weights(runs["fedprox"])["weights.0"].tolist() == plus(np.zeros(5, np.float32), 2).tolist()


def test_initial_weights_come_from_a_file(fed: Federation) -> None:
    first = np.random.default_rng(1).normal(size=9).astype(np.float32)
    save_file({"weights.0": first[:5], "weights.1": first[5:]}, fed.folder / "init.safetensors")
    spec = add_constant(size=9, rounds=4, silos=("a",)).replace("size = 9", "size = 9\ntensors = 2")
    run = fed.submit(spec + '[model]\ninit = "init.safetensors"\n')
    fed.wait_for(run)
    weights = fed.weights(run)
    assert [*weights["weights.0"], *weights["weights.1"]] == plus(first, 4).tolist()

    save_file({"weights.0": first}, fed.folder / "init.safetensors")
    other = fed.submit(spec + '[model]\ninit = "init.safetensors"\n')
    assert "the initial weights fit the model of no silo" in fed.wait_for(other, "failed")["reason"]


def test_a_silo_that_dies_is_missed_and_comes_back(fed: Federation) -> None:
    run = fed.submit(add_constant(seconds=1.5, rounds=1000, silos=SILOS, minimum=2, timeout_s=6, wait_s=300))
    wait_until(fed.in_round(run, 1, *SILOS), 90, fed.all_logs)
    fed.kill("c")
    said = [""]
    goes_on = r"waiting for it, last seen \d+ s ago; goes on with 2 of 3 in \d s"
    wait_until(lambda: said.append(fed.words(run, "c")) or re.fullmatch(goes_on, said[-1]), 10, lambda: str(said))
    number = fed.live(run)["round"]

    wait_until(lambda: fed.live(run)["rounds_committed"] >= number, 30, fed.all_logs)
    missed = "select state, reason_code, reason from silo_rounds where run_id = ? and silo_name = 'c'"
    state, code, reason = fed.rows(missed + " and round_number = ?", run, number)[0]
    assert (state, code) == ("missed", "no_answer")
    assert "it did not answer in time" in reason
    shown = fed.command("run", "show", run)
    assert re.search(r"c +away +1 +it did not answer in time", shown)
    assert re.search(rf"round +{number} .* 2 silos \(without c\)", shown)
    assert fed.words(run, "c").endswith("takes part again as soon as it calls")

    fed.join("c")  # the same command, without an invite
    back = "select count(*) from silo_rounds where run_id = ? and silo_name = 'c' and state = 'included'"
    before = fed.rows(back, run)[0][0]
    wait_until(lambda: fed.rows(back, run)[0][0] > before, 90, fed.all_logs)

    fed.kill("b")
    fed.kill("c")
    alone = r"waiting for it, last seen \d+ s ago; 1 of at least 2 are there; gives up in \d+ s"
    both = ("b", "c")
    wait_until(lambda: all(re.fullmatch(alone, fed.words(run, s)) for s in both), 30, lambda: str(fed.live(run)))
    waits_in = fed.live(run)["round"]
    fed.join("b", wait=False)
    fed.join("c", wait=False)
    wait_until(lambda: fed.live(run)["rounds_committed"] > waits_in, 90, fed.all_logs)
    fed.command("run", "stop", run)
    done = [r for r in fed.snapshot(run)["rounds"] if r["state"] == "committed"]
    assert done[number - 1]["cohort"] == ["a", "b"]
    assert all(len(r["cohort"]) >= 2 for r in done)
    assert fed.weights(run)["weights.0"].tolist() == plus(np.zeros(1000, np.float32), len(done)).tolist()


@pytest.mark.slow
def test_runs_queue_and_a_stopped_one_makes_room(fed: Federation) -> None:
    for silo in SILOS:
        allow(fed, silo, ONE_AT_A_TIME)
    first = fed.submit(add_constant(name="first", seconds=0.5, rounds=2, silos=("a",)))
    second = fed.submit(add_constant(name="second", seconds=60, rounds=2, silos=("a",)))
    busy = "refused: it is busy with another run (it joins when that run ends)"
    wait_until(lambda: fed.words(second, "a") == busy, 20, lambda: str(fed.live(second)))
    assert fed.live(second)["state"] == "recruiting"
    fed.wait_for(first)
    wait_until(fed.in_round(second, 1, "a"), 30, fed.all_logs)

    third = fed.submit(add_constant(name="third", rounds=1, silos=("a",)))
    workers = fed.workers("a")
    assert len(workers) == 1
    begun = time.monotonic()
    assert fed.command("run", "stop", second).strip() == f"run {second} is stopped"
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 5, fed.all_logs)
    fed.wait_for(third, timeout_s=40)
    assert time.monotonic() - begun < 30
    assert fed.snapshot(second)["reason"] == "stopped by its owner"
    assert fed.command("run", "stop", second).strip() == f"run {second} is stopped"


def test_the_server_may_stop_and_die_in_the_middle(fed: Federation) -> None:
    run = fed.submit(add_constant(seconds=1, rounds=7, silos=("a",)))
    wait_until(fed.in_round(run, 2, "a"), 60, fed.all_logs)
    begun = time.monotonic()
    assert fed.stop("server") == 0
    assert time.monotonic() - begun < PROMPT_S
    assert "fedplat server stopped" in fed.log("server")
    [(state, committed)] = fed.rows("select state, rounds_committed from runs where id = ?", run)
    assert state == "running"
    assert committed >= 1
    wait_until(lambda: "trying again until it is back" in fed.log("a"), 10, lambda: fed.log("a"))
    fed.start_server()
    assert f"Going on with run {run}" in fed.log("server")
    wait_until(fed.in_round(run, committed + 2, "a"), 60, fed.all_logs)
    fed.kill("server")
    fed.start_server()
    view = fed.wait_for(run)
    assert [r["state"] for r in view["rounds"]] == ["committed"] * 7
    assert fed.weights(run)["weights.0"].tolist() == plus(np.zeros(1000, np.float32), 7).tolist()
    assert re.search(r"the server at localhost:\d+ is back", fed.log("a"))
    assert all(fed.processes[silo].poll() is None for silo in SILOS)


def test_ctrl_c_ends_server_and_silos_at_once() -> None:
    with federation() as fed:
        fed.join("d")
        for name in ("d", "server"):
            process = fed.processes.pop(name)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0, fed.log(name)
            assert time.monotonic() - begun < PROMPT_S, name
        assert "Traceback" not in fed.all_logs()


def test_a_paused_silo_joins_when_it_is_let(fed: Federation) -> None:
    at_b = ("--silo", "b", "--home", str(fed.folder / "silos"))
    assert "silo b is paused" in fed.command("client", "pause", *at_b)
    run = fed.submit(add_constant(rounds=1, silos=("b",)))
    paused = "refused: its administrator has paused it (fedplat client pause --off at the silo)"
    wait_until(lambda: fed.words(run, "b") == paused, 20, lambda: str(fed.live(run)))
    assert "silo b is paused" in fed.command("client", "status", *at_b)
    fed.command("client", "pause", *at_b, "--off")
    assert fed.wait_for(run, timeout_s=30)["rounds_committed"] == 1


def test_rotate_revoke_and_leave(fed: Federation) -> None:
    at_d = ("--silo", "d", "--home", str(fed.folder / "silos"))
    fed.join("d", policy=ALLOW_ALL)
    old = fed.json("client", "fingerprint", *at_d)["silo"]
    invite = fed.command("silo", "rotate", "d")
    assert "is in use by another process" in fed.command("client", "leave", *at_d, "--yes", check=False)
    assert fed.stop("d") == 0
    fed.start("d", "client", "join", *at_d, "--invite", "-", stdin=invite)
    wait_until(lambda: fed.json("client", "fingerprint", *at_d)["silo"] != old, 20, lambda: fed.log("d"))
    fed.wait_connected("d")
    assert fed.json("silo", "show", "d")["fingerprint"] == fed.json("client", "fingerprint", *at_d)["silo"]

    run = fed.submit(add_constant(seconds=2, rounds=4, silos=("a", "d"), timeout_s=5))
    wait_until(fed.in_round(run, 1, "a", "d"), 60, fed.all_logs)
    assert fed.command("silo", "revoke", "d").strip() == "silo d is revoked"
    number = fed.live(run)["round"]
    assert fed.processes.pop("d").wait(10) == 1
    assert "silo d was revoked" in fed.log("d")
    cohorts = [r["cohort"] for r in fed.wait_for(run)["rounds"]]
    assert cohorts[number:] == [["a"]] * (4 - number)
    assert number < 4

    fed.start("d", "client", "join", *at_d, "--invite", "-", stdin=fed.command("silo", "invite", "d"))
    fed.wait_connected("d")
    fed.stop("d")
    assert "silo d has left" in fed.command("client", "leave", *at_d, "--yes")
    assert "revoked" in fed.command("silo", "show", "d")
    again = fed.attempt("client", "join", *at_d)
    assert again.returncode == 1
    assert "silo d has not joined a federation yet\n  Ask the server's administrator" in again.stderr


MLP = """
name = "mlp"
seed = 5
[task]
name = "tabular"
[task.options]
model = "mlp"
hidden = [8]
[task.options.target]
column = "ill"
categories = ["no", "yes"]
[[task.options.features]]
column = "age"
kind = "numeric"
center = 50
scale = 10
[[task.options.features]]
column = "dose"
kind = "numeric"
[data]
name = "patients"
[rounds]
count = {rounds}
timeout_s = 60
[silos]
minimum = {minimum}
names = {names}
[training]
epochs = 2
batch_size = 16
learning_rate = 0.1
"""


def mlp(*silos: str, rounds: int) -> str:
    return MLP.format(rounds=rounds, minimum=len(silos), names=list(silos))


def patients(folder: Path, num_records: int, seed: int) -> dict[str, Path]:
    """A dataset of made-up patients."""
    rng = np.random.default_rng(seed)
    ages, doses = rng.normal(50, 10, num_records), rng.normal(size=num_records)
    path = folder / f"patients-{seed}.csv"
    lines = [f"{a:.3f},{d:.3f},{'yes' if a + 5 * d > 50 else 'no'}" for a, d in zip(ages, doses, strict=True)]
    path.write_text("\n".join(["age,dose,ill", *lines]) + "\n")
    return {"patients": path}


@pytest.mark.slow
def test_a_local_head_survives_a_killed_silo(fed: Federation) -> None:
    data = patients(fed.folder, 400, 1)
    fed.join("e", data=data, policy=ALLOW_ALL)
    spec = mlp("e", rounds=12) + '[model]\nlocal = ["2.*"]\n'
    undisturbed, killed = fed.wait_for(fed.submit(spec))["id"], fed.submit(spec)
    wait_until(lambda: fed.live(killed)["rounds_committed"] >= 2, 40, fed.all_logs)
    fed.kill("e")
    assert fed.live(killed)["rounds_committed"] < 12
    fed.join("e", data=data)
    fed.wait_for(killed)
    fed.stop("e")
    weights, again = fed.weights(undisturbed), fed.weights(killed)
    assert sorted(weights) == ["0.bias", "0.weight"]
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    folders = [fed.silo_home("e") / "runs" / run for run in (undisturbed, killed)]
    heads = [load_file(folder / "local-00000012.safetensors") for folder in folders]
    assert sorted(heads[0]) == ["2.bias", "2.weight"]
    assert all(np.array_equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert not np.array_equal(heads[0]["2.weight"], np.zeros((1, 8)))


def test_a_run_on_postgresql() -> None:
    with private_postgres() as postgres:
        url = postgres.create_database("study")
        with federation("--database", url) as fed:
            fed.join("p", policy=ALLOW_ALL)
            run = fed.submit(add_constant(rounds=3, silos=("p",)))
            fed.wait_for(run)
            assert "round   3" in fed.command("run", "show", run)
            assert postgres.password not in fed.log("server") + fed.command("run", "show", run)
            assert fed.stop("server") == 0
            fed.start_server()  # the URL is remembered
            assert fed.snapshot(run)["state"] == "finished"
            assert not (fed.folder / "server" / "server" / "fedplat.db").exists()


@pytest.mark.slow
def test_two_fresh_federations_train_the_same_bits() -> None:
    hashes = [train_afresh() for _ in range(2)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 3  # it did learn


def train_afresh() -> list[str]:
    """The SHA-256 of the weights file after each round; one of the three silos has two workers."""
    with federation() as fed:
        for number, silo in enumerate(("x", "y", "z")):
            workers = ("--workers", "2") if silo == "y" else ()
            fed.join(silo, *workers, data=patients(fed.folder, 80 + 40 * number, number), wait=False)
        fed.wait_connected("x", "y", "z")
        run = fed.submit(mlp("x", "y", "z", rounds=3))
        view = fed.wait_for(run)
        assert [s["info"]["capabilities"]["workers"] for s in fed.snapshot(run)["silos"]] == [1, 2, 1]
        final = hashlib.sha256((Path(fed.rows("select weights_path from runs")[0][0])).read_bytes()).hexdigest()
        hashes = [r["weights_sha256"] for r in view["rounds"]]
        assert hashes[-1] == view["weights_sha256"] == final
        return hashes
