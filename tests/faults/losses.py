"""Silos are lost for good: their process is killed, their disk is gone, and nobody starts them again. The others, which
are killed as well, go on without them."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from typing import Any

from tests.faults.campaign import SILOS, Campaign, make_spec, stage
from tests.faults.invariants import committed, open_parts, orphans, wrong_hashes, wrong_means
from tests.support.federation import wait_until

TIMEOUT_S = 20.0
"""How long a round waits for a silo that is lost in it."""


def run_losses(kills: int, lose: int, seed: int, rounds: int, steps: int) -> dict[str, Any]:
    """One run with `kills` kills, or as many as it lives through, and `lose` losses among the first half of them."""
    minimum = len(SILOS) - lose
    spec = make_spec(rounds=rounds, steps=steps, minimum=minimum, timeout_s=TIMEOUT_S, keep_last=rounds + 1)
    chance = random.Random(seed)
    moments = chance.sample(range(max(lose, min(kills, rounds) // 2)), lose)
    with stage() as fed:
        campaign = Campaign(fed, chance, fed.submit(spec), round_s=0.0)
        campaign.await_start()
        begun = time.monotonic()
        wait_until(lambda: len(campaign.rounds()) > 1, 120, fed.all_logs)
        campaign.round_s = time.monotonic() - begun
        lost: dict[str, int] = {}
        for number in range(kills):
            if number in moments:
                silo = chance.choice(campaign.silos)
                lost[silo] = lose_for_good(campaign, silo)
            if not campaign.strike():
                break
        wait_until(campaign.is_over, 1200, fed.all_logs)
        return report(campaign, fed.snapshot(campaign.run), spec, lost)


def lose_for_good(campaign: Campaign, silo: str) -> int:
    """Returns the round in which it happened: the silo's update may still be in it."""
    campaign.silos.remove(silo)
    campaign.fed.kill(silo)
    home = campaign.fed.silo_home(silo)

    def is_gone() -> bool:
        shutil.rmtree(home, ignore_errors=True)  # its workers may live a moment longer
        return not home.exists()

    wait_until(is_gone, 10)
    return int(campaign.rounds()[-1][0])


def report(campaign: Campaign, view: dict[str, Any], spec: str, lost: dict[str, int]) -> dict[str, Any]:
    """What the rows and files say."""
    fed = campaign.fed
    planned = view["rounds_planned"] if view["state"] == "finished" else view["rounds_committed"]
    minimum = len(SILOS) - len(lost)
    cohorts = {r["number"]: r["cohort"] for r in view["rounds"] if r["state"] == "committed"}
    return {
        "kills": len(campaign.kills),
        "kills_by_target": dict(Counter(k.target for k in campaign.kills)),
        "kills_by_state": dict(Counter(k.state for k in campaign.kills)),
        "lost": lost,
        "state": view["state"],
        "reason": view["reason"],
        "rounds_committed": view["rounds_committed"],
        "cohorts": dict(Counter(len(cohort) for cohort in cohorts.values())),
        "gaps": int(committed(fed, view) != list(range(1, planned + 1))),
        "too_small": [number for number, cohort in cohorts.items() if len(cohort) < minimum],
        "with_the_lost": [n for n, cohort in cohorts.items() for silo in cohort if n > lost.get(silo, n)],
        "orphans": len(orphans(fed, [view], keep_last=view["rounds_planned"] + 1)),
        "open_parts": len(open_parts(view)),
        "wrong_hashes": wrong_hashes(fed, view),
        "wrong_means": wrong_means(fed, view, spec),
    }
