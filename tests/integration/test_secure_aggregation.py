"""Runs with secure aggregation as users meet them: real silos over TLS, policies, pins, a lost disk, a late comer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from fedplat.identity import new_key
from fedplat.identity.keys import fingerprint
from tests.support.federation import Federation, add_constant, federation, wait_until

SILOS = ("silo-a", "silo-b", "silo-c", "silo-d")
POLICY = 'allowed_tasks = ["*"]\nmax_threads = 1\n'
SECURE = "\n[secure_aggregation]\nenabled = true\n"


@pytest.fixture(scope="module")
def running() -> Iterator[Federation]:
    with federation() as fed:
        for silo in SILOS:
            fed.join(silo, wait=False, policy=POLICY)
        fed.wait_connected(*SILOS, timeout_s=60)
        yield fed


@pytest.fixture
def fed(running: Federation) -> Iterator[Federation]:
    """Everybody up and nothing to do, however the last test ended. No traceback on any console."""
    for left in (r["id"] for r in running.ask("/runs") if r["finished_at"] is None):
        running.command("run", "stop", left)
    for silo in SILOS:
        (running.silo_home(silo) / "policy.toml").write_text(POLICY)
        if running.processes[silo].poll() is not None:
            running.join(silo, wait=False)
    running.wait_connected(*SILOS)
    yield running
    assert "Traceback" not in running.all_logs()
    assert "Traceback" not in (running.folder / "server" / "server" / "server.log").read_text()


def spec(**options: object) -> str:
    given: dict[str, object] = {"rounds": 3, "minimum": 3, "silos": SILOS, "timeout_s": 20} | options
    return add_constant(**given) + SECURE  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [50, 400_000])
def test_the_model_is_right_and_the_server_has_seen_no_update(fed: Federation, size: int) -> None:
    """Small updates ride in their messages, large ones come by the road of large buffers."""
    run = fed.submit(spec(size=size))
    view = fed.wait_for(run)
    [weights] = fed.weights(run).values()
    assert np.abs(weights - 0.03).max() < 1e-6
    assert [len(r["cohort"]) for r in view["rounds"]] == [4, 4, 4]
    tests = {e["round_number"]: e for e in view["evaluations"] if e["split"] == "test"}
    assert sorted(tests) == [0, 1, 2, 3]
    assert all(e["silos"] == list(SILOS) for e in tests.values())
    assert all(p["num_examples"] is None and p["metrics"] is None for p in view["silo_rounds"])
    steps = view["secure_steps"]
    assert [(s["round_number"], s["closing"]) for s in steps] == [(1, False), (2, False), (3, False), (3, True)]
    for step in steps:
        assert (step["threshold"], step["colluders_tolerated"], step["dropped"]) == (3, 1, [])
        assert step["num_confirmed"] == 0
    shown = fed.command("run", "show", run)
    assert "secure aggregation: the server sees sums, and no single update" in shown
    assert "3 of them" in shown
    assert "0 of 3 peers" in shown


def test_after_a_run_no_key_or_seed_is_left_at_a_silo(fed: Federation) -> None:
    run = fed.submit(spec())
    fed.wait_for(run)
    for silo in SILOS:
        path = fed.silo_home(silo) / "runs" / run / "masking.json"
        wait_until(
            lambda path=path: (path.parent / "ended").exists() and "roster" not in json.loads(path.read_text()), 10
        )
        assert path.stat().st_mode & 0o777 == 0o600
        kept = json.loads(path.read_text())
        assert kept.keys() <= {"binding", "name", "family", "epoch", "next_step", "releases"}
        assert not list((fed.silo_home(silo) / "spool").glob("*/*"))


def test_a_silo_decides_whether_it_shows_its_update(fed: Federation) -> None:
    (fed.silo_home("silo-b") / "policy.toml").write_text(POLICY + "require_secure_aggregation = true\n")
    plain = fed.wait_for(fed.submit(add_constant(rounds=1, minimum=3, silos=SILOS)))
    said = {s["silo_name"]: (s["reason"] or {}).get("words") for s in plain["silos"] if s["state"] == "refused"}
    assert said == {"silo-b": {"rule": "require_secure_aggregation"}}
    masked = fed.wait_for(fed.submit(spec(rounds=1)))
    assert len(masked["rounds"][0]["cohort"]) == 4


def test_no_sum_is_opened_over_fewer_silos_than_a_silo_allows(fed: Federation) -> None:
    text = add_constant(rounds=1, minimum=2, silos=SILOS[:2]) + SECURE + "min_cohort = 2\n"
    view = fed.wait_for(fed.submit(text), "failed")
    assert "min_cohort" in view["reason"]
    for silo in SILOS[:2]:
        (fed.silo_home(silo) / "policy.toml").write_text(POLICY + "min_cohort = 2\n")
    view = fed.wait_for(fed.submit(text))
    assert view["secure_steps"][0]["colluders_tolerated"] == 0


def test_a_key_that_is_not_the_pinned_one_is_refused_by_name(fed: Federation) -> None:
    other = fingerprint(new_key().public_key())
    home = ("--silo", "silo-a", "--home", str(fed.folder / "silos"))
    mine = fed.json("client", "fingerprint", "--silo", "silo-c", "--home", str(fed.folder / "silos"))["silo"]
    fed.command("client", "peers", "pin", "silo-c", other, *home)
    try:
        view = fed.wait_for(fed.submit(spec(rounds=1, timeout_s=5)))
        assert view["rounds"][0]["cohort"] == ["silo-b", "silo-c", "silo-d"]
        [part] = [p for p in view["silo_rounds"] if p["silo_name"] == "silo-a"]
        assert part["reason"]["words"] == {"rule": "peer_changed"}
        assert "fedplat client peers pin" in part["reason"]["hint"]
    finally:
        fed.command("client", "peers", "pin", "silo-c", mine, *home)
    view = fed.wait_for(fed.submit(spec(rounds=1)))
    assert len(view["rounds"][0]["cohort"]) == 4


@pytest.mark.slow
def test_a_silo_that_lost_its_disk_in_a_run_comes_back_with_fresh_keys(fed: Federation) -> None:
    run = fed.submit(spec(rounds=15, seconds=1.0))
    wait_until(fed.in_round(run, 2, *SILOS), 60, fed.all_logs)
    fed.kill("silo-b")
    shutil.rmtree(fed.silo_home("silo-b") / "runs" / run)
    fed.join("silo-b", wait=False)
    view = fed.wait_for(run)
    assert view["rounds_committed"] == 15
    epochs = [s["epoch"] for s in view["secure_steps"]]
    assert epochs == sorted(epochs)
    assert set(epochs) == {1, 2}
    assert len(view["rounds"][-1]["cohort"]) == 4
    [weights] = fed.weights(run).values()
    assert np.abs(weights - 0.15).max() < 1e-6


def test_a_run_that_paused_because_a_silo_refused_goes_on_when_that_is_mended(fed: Federation) -> None:
    three = SILOS[:3]
    home = ("--silo", "silo-a", "--home", str(fed.folder / "silos"))
    mine = fed.json("client", "fingerprint", "--silo", "silo-c", "--home", str(fed.folder / "silos"))["silo"]
    fed.command("client", "peers", "pin", "silo-c", fingerprint(new_key().public_key()), *home)
    try:
        run = fed.submit(spec(rounds=2, silos=three, timeout_s=5))
        view = fed.wait_for(run, "paused")
        assert "the key of a silo is not the one that is known here" in view["reason"]
        assert "silo-a, round 1: it refuses, for secure aggregation" in fed.command("run", "show", run)
    finally:
        fed.command("client", "peers", "pin", "silo-c", mine, *home)
    fed.command("run", "continue", run)
    view = fed.wait_for(run)
    assert [r["cohort"] for r in view["rounds"]] == [list(three), list(three)]


@pytest.mark.slow
def test_a_killed_server_opens_the_sum_that_it_had_begun_to_open(fed: Federation) -> None:
    run = fed.submit(spec(rounds=4, seconds=0.3))
    for number in (1, 2, 3):
        wait_until(lambda number=number: fed.rows("select 1 from secure_steps where round_number = ?", number), 60)
        fed.kill("server")
        fed.start_server()
    view = fed.wait_for(run)
    assert [len(r["cohort"]) for r in view["rounds"]] == [4, 4, 4, 4]
    assert [s["step"] for s in view["secure_steps"] if not s["closing"]] == [1, 2, 3, 4]
    [weights] = fed.weights(run).values()
    assert np.abs(weights - 0.04).max() < 1e-6
