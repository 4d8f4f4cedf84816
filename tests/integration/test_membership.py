"""Silos that are paused, revoked, killed or without memory in the middle of a run; runs that want the same silos."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.federation import Federation, add_constant, federation, wait_until

ALLOW = 'allowed_tasks = ["*"]\nmax_parallel_runs = 4\n'
ONE_AT_A_TIME = 'allowed_tasks = ["*"]\n'
PAIR = ("a", "b")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """The silos keep their temporary files in a folder that a test can look at."""
    temporary = tmp_path_factory.mktemp("tmp")
    with federation(env={"TMPDIR": str(temporary)}) as fed:
        yield fed


@pytest.fixture
def fed(running: Federation) -> Iterator[Federation]:
    """Both silos up, and no run."""
    for left in (r["id"] for r in running.ask("/runs") if r["finished_at"] is None):
        running.command("run", "stop", left)
    for silo in PAIR:
        if silo not in running.processes:
            running.join(silo, wait=False, policy=ALLOW)
        allow(running, silo, ALLOW)
        (running.silo_home(silo) / "paused").unlink(missing_ok=True)
    running.wait_connected(*PAIR)
    yield running
    assert "Traceback" not in running.all_logs()


def allow(fed: Federation, silo: str, policy: str) -> None:
    (fed.silo_home(silo) / "policy.toml").write_text(policy)


def pause(fed: Federation, silo: str, *options: str) -> None:
    fed.command("client", "pause", "--silo", silo, "--home", str(fed.folder / "silos"), *options)


def cohorts(fed: Federation, run: str) -> list[list[str]]:
    return [r["cohort"] for r in fed.snapshot(run)["rounds"] if r["state"] == "committed"]


def events(fed: Federation, run: str, kind: str, silo: str | None = None) -> list[Any]:
    """Their details, oldest first."""
    query = "select detail from events where run_id = ? and kind = ? and silo_name is ? order by seq"
    return [json.loads(detail) for (detail,) in fed.rows(query, run, kind, silo)]


def check_weights(fed: Federation, run: str, rounds: int) -> None:
    expected = np.zeros(1000, np.float32)
    for _ in range(rounds):
        expected = expected + np.float32(0.01)
    assert fed.weights(run)["weights.0"].tolist() == expected.tolist()


def test_a_silo_that_is_paused_in_a_run_is_waited_for_and_comes_back(fed: Federation) -> None:
    run = fed.submit(add_constant(seconds=0.5, rounds=8, silos=PAIR, minimum=2))
    wait_until(fed.in_round(run, 2, *PAIR), 60, fed.all_logs)
    pause(fed, "b")
    paused = "away: its administrator has paused it (fedplat client pause --off at the silo)"
    wait_until(lambda: fed.words(run, "b") == paused, 20, lambda: str(fed.live(run)))
    assert fed.live(run)["state"] == "running"
    pause(fed, "b", "--off")
    fed.wait_for(run, timeout_s=60)
    assert cohorts(fed, run) == [["a", "b"]] * 8
    check_weights(fed, run, 8)


def test_the_others_go_on_at_once_without_a_paused_silo(fed: Federation) -> None:
    run = fed.submit(add_constant(seconds=0.5, rounds=40, silos=PAIR, minimum=1, timeout_s=300))
    wait_until(fed.in_round(run, 2, *PAIR), 60, fed.all_logs)
    pause(fed, "b")
    wait_until(lambda: ["a"] in cohorts(fed, run), 20, lambda: str(fed.live(run)))
    number = len(cohorts(fed, run))
    wait_until(lambda: len(cohorts(fed, run)) >= number + 3, 30, lambda: str(fed.live(run)))
    parts = fed.rows("select state, reason_code from silo_rounds where run_id = ? and silo_name = 'b'", run)
    assert ("missed", "paused") in parts
    assert not [state for state, _ in parts if state == "failed"]
    pause(fed, "b", "--off")
    wait_until(lambda: cohorts(fed, run)[-1] == ["a", "b"], 40, lambda: str(fed.live(run)))
    fed.command("run", "stop", run)


@pytest.mark.slow
def test_too_few_updates_pause_a_run_that_can_go_on(fed: Federation) -> None:
    run = fed.submit(add_constant(seconds=0.5, rounds=6, silos=PAIR, minimum=2, timeout_s=2, wait_s=15))
    wait_until(fed.in_round(run, 2, *PAIR), 60, fed.all_logs)
    pause(fed, "b")
    reason = fed.wait_for(run, "paused", timeout_s=60)["reason"]
    assert "of at least 2 silos" in reason
    assert "b: its administrator has paused it" in reason
    pause(fed, "b", "--off")
    fed.command("run", "continue", run)
    wait_until(lambda: fed.live(run)["state"] == "finished", 60, lambda: str(fed.live(run)))
    assert cohorts(fed, run) == [["a", "b"]] * 6
    check_weights(fed, run, 6)


@pytest.mark.slow
def test_a_silo_that_has_lost_its_memory_of_the_run_joins_again_in_the_same_round(fed: Federation) -> None:
    run = fed.submit(add_constant(seconds=1, rounds=4, silos=PAIR, minimum=2, timeout_s=300))
    wait_until(fed.in_round(run, 2, *PAIR), 60, fed.all_logs)
    fed.kill("b")
    for folder in ("runs", "spool"):
        shutil.rmtree(fed.silo_home("b") / folder)
    fed.join("b")
    fed.wait_for(run, timeout_s=90)
    assert cohorts(fed, run) == [["a", "b"]] * 4
    check_weights(fed, run, 4)
    said = [(e["state"], e["reason_code"]) for e in events(fed, run, "run.silo", "b")]
    assert said == [("accepted", None), ("away", "not_joined"), ("accepted", None)]


def test_a_revoked_silo_is_not_waited_for(fed: Federation) -> None:
    fed.join("c", policy=ALLOW)
    run = fed.submit(add_constant(seconds=4, rounds=2, silos=("a", "c"), timeout_s=600))
    wait_until(fed.in_round(run, 1, "a", "c"), 60, fed.all_logs)
    fed.command("silo", "revoke", "c")
    assert fed.processes.pop("c").wait(10) == 1
    fed.wait_for(run, timeout_s=60)
    assert cohorts(fed, run) == [["a"], ["a"]]
    part = fed.rows("select state, reason_code from silo_rounds where run_id = ? and silo_name = 'c'", run)
    assert part == [("failed", "revoked")]


@pytest.mark.slow
def test_a_run_below_its_minimum_by_a_revoked_silo_goes_on_when_it_is_let_in_again(fed: Federation) -> None:
    fed.join("d", policy=ALLOW)
    run = fed.submit(add_constant(seconds=1, rounds=4, silos=("a", "d"), minimum=2, timeout_s=600, wait_s=15))
    wait_until(fed.in_round(run, 2, "a", "d"), 60, fed.all_logs)
    fed.command("silo", "revoke", "d")
    fed.processes.pop("d").wait(10)
    assert "(d: it was revoked" in fed.wait_for(run, "paused", timeout_s=40)["reason"]  # in a round, or between two
    fed.command("run", "continue", run)
    wait_until(lambda: fed.live(run)["state"] == "waiting", 10, lambda: str(fed.live(run)))
    reason = fed.wait_for(run, "paused", timeout_s=40)["reason"]
    waited = r"1 of at least 2 silos are there after \d+ s \(d: it was revoked, since [-\d]+ [:\d]+ UTC\)"
    assert re.search(waited, reason)
    fed.command("run", "continue", run)
    at_d = ("--silo", "d", "--home", str(fed.folder / "silos"))
    fed.start("d", "client", "join", *at_d, "--invite", "-", stdin=fed.command("silo", "invite", "d"))
    wait_until(lambda: fed.live(run)["state"] == "finished", 60, lambda: str(fed.live(run)))
    assert cohorts(fed, run) == [["a", "d"]] * 4


@pytest.mark.slow
def test_runs_that_want_the_same_silos_at_the_same_moment_all_end(fed: Federation) -> None:
    for silo in PAIR:
        allow(fed, silo, ONE_AT_A_TIME)
    pause(fed, "a")
    specs = [add_constant(name=f"n{i}", rounds=1, silos=PAIR, minimum=2, wait_s=600) for i in range(3)]
    first, *others = [fed.submit(spec) for spec in specs]
    behind = f"waiting for run {first} to recruit"
    wait_until(lambda: all(fed.live(run)["activity"] == behind for run in others), 30, lambda: str(fed.live(others[0])))
    pause(fed, "a", "--off")
    for run in (first, *others):
        fed.wait_for(run, timeout_s=60)


def test_a_run_that_waits_for_a_silo_that_is_not_there_leaves_the_others_alone(fed: Federation) -> None:
    allow(fed, "a", ONE_AT_A_TIME)
    fed.stop("b")
    waits = fed.submit(add_constant(name="waits", rounds=1, silos=PAIR, minimum=2))
    wait_until(lambda: fed.live(waits)["activity"] == "recruiting", 20)
    fed.wait_for(fed.submit(add_constant(rounds=1, silos=("a",))), timeout_s=60)
    fed.join("b")
    fed.wait_for(waits, timeout_s=60)


def test_a_run_that_is_paused_while_it_recruits_leaves_its_silos_to_others(fed: Federation) -> None:
    for silo in PAIR:
        allow(fed, silo, ONE_AT_A_TIME)
    pause(fed, "a")
    run = fed.submit(add_constant(rounds=1, silos=PAIR, minimum=2))
    wait_until(lambda: fed.words(run, "a").startswith("refused: its administrator"), 30, lambda: str(fed.live(run)))
    fed.command("run", "pause", run)
    fed.wait_for(fed.submit(add_constant(rounds=1, silos=("b",))), timeout_s=60)
    pause(fed, "a", "--off")
    fed.command("run", "continue", run)
    wait_until(lambda: fed.live(run)["state"] == "finished", 60, lambda: str(fed.live(run)))


def test_stop_and_pause_may_be_asked_again(fed: Federation) -> None:
    run = fed.submit(add_constant(seconds=1, rounds=9, silos=("a",)))
    wait_until(fed.in_round(run, 1, "a"), 60, fed.all_logs)
    for state, word in (("paused", "pause"), ("stopped", "stop")):
        answers = {fed.command("run", word, run).strip() for _ in range(2)}
        assert answers == {f"run {run} is {state}"}
    assert "is stopped already" in fed.command("run", "pause", run, check=False)
    states = [e["to"] for e in events(fed, run, "run.state")]
    assert states == ["running", "paused", "stopped"]
    assert len(events(fed, run, "run.asked_to_be_paused")) == 1


@pytest.mark.slow
def test_a_killed_silo_leaves_nothing_in_the_temporary_folder(fed: Federation) -> None:
    temporary = Path(fed.env["TMPDIR"])
    run = fed.submit(add_constant(seconds=2, rounds=2, silos=PAIR))
    wait_until(fed.in_round(run, 1, *PAIR), 60, fed.all_logs)
    before = sorted(temporary.glob("fedplat-*"))
    assert len(before) == 2
    fed.kill("b")
    assert sorted(temporary.glob("fedplat-*")) == before
    fed.join("b")
    fed.wait_for(run, timeout_s=60)
    wait_until(lambda: not list(temporary.glob("fedplat-*")), 20, lambda: str(os.listdir(temporary)))
