"""Two runs at the same time: what happens to one is nothing to the other."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.campaign import make_spec, stage
from tests.faults.chaos import same_weights
from tests.support.federation import Federation, wait_until

PAIR = ("silo-c", "silo-d")


def workers(fed: Federation) -> set[int]:
    """The processes that train now, of both runs."""
    return {pid for silo in PAIR for pid in fed.workers(silo)}


@pytest.mark.slow
def test_a_run_is_untouched_by_what_kills_the_other() -> None:
    with stage(PAIR, policy="max_parallel_runs = 2\nmax_threads = 1\n") as fed:
        short, long = (make_spec(rounds=n, steps=2000, seed=n, silos=PAIR) for n in (6, 20))
        calm = [fed.wait_for(fed.submit(spec)) for spec in (short, long)]

        beside = fed.submit(long)
        wait_until(fed.in_round(beside, 1, *PAIR), 60, fed.all_logs)
        others = workers(fed)
        killed = fed.submit(short)
        wait_until(fed.in_round(killed, 1, *PAIR), 60, fed.all_logs)
        own = workers(fed) - others
        assert len(own) == len(PAIR)
        for pid in own:
            os.kill(pid, signal.SIGKILL)
        fed.command("run", "pause", killed)
        rounds = fed.snapshot(beside)["rounds_committed"]
        wait_until(lambda: fed.snapshot(beside)["rounds_committed"] > rounds, 60, fed.all_logs)
        fed.kill("server")
        fed.start_server()
        assert fed.snapshot(killed)["state"] == "paused"
        assert fed.snapshot(beside)["state"] == "running"
        fed.command("run", "continue", killed)

        views = [fed.wait_for(run) for run in (killed, beside)]
        assert all(same_weights(fed, view, other) for view, other in zip(views, calm, strict=True))
        assert calm[0]["weights_sha256"] != calm[1]["weights_sha256"]
        assert not any(part["restarts"] for part in views[1]["silo_rounds"])
        assert [(r["number"], r["step"], r["state"]) for r in views[1]["rounds"]] == [
            (number, number, "committed") for number in range(1, 21)
        ]
