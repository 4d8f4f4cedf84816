"""Chaos campaigns: `kill -9` of randomly chosen processes (server, silo, worker) at random moments of a run.

    python tests/faults/chaos.py [--kills N] [--lose K] [--seed S] [--rounds R] [--steps T] [--json]
        [--secure | --private]

Each is started again after a random pause (a worker by its silo). Some kills wait for a rare state, so that each state
has its kills; a quarter is followed by the next before anything has recovered. In the end the rounds in SQL, the files
on disk and the final weights are compared with a run that nobody disturbed.

With `--private` the runs are private and masked, so no two end in the same bits: then each silo's privacy ledger is
compared with what the server's tables say was released (see charges.py).

With `--lose K`, K of the four silos are lost for good on the way, disk and all, and the others go on (see losses.py).

`recovery_p95_s`: from the moment the killed process is back to the next state of a round in SQL, less the training time
of the silo that this state waited for.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.faults.campaign import Campaign, make_spec, round_s, stage
from tests.faults.charges import ledger_figures, set_budgets
from tests.faults.invariants import committed, orphans
from tests.faults.losses import run_losses
from tests.support.federation import Federation

LEAST_IN_EACH_STATE = 3


def run_campaign(
    kills: int, seed: int, rounds: int, steps: int, *, secure: bool = False, private: bool = False
) -> dict[str, Any]:
    """Disturbed runs, one after another until all kills are done, beside an undisturbed one of the same spec."""
    text = make_spec(rounds=rounds, steps=steps, secure=secure or private, private=private)
    with stage() as fed:
        if private:
            set_budgets(fed)
        reference = fed.wait_for(fed.submit(text), timeout_s=1200)
        campaign = Campaign(fed, random.Random(seed), fed.submit(text), round_s(reference))
        campaign.await_start()
        runs = [campaign.run]
        while (num_left := kills - len(campaign.kills)) > 0:
            print(f"run {len(runs)}, {len(campaign.kills)} of {kills} kills", end="\r", file=sys.stderr, flush=True)
            if not campaign.strike(campaign.next_hunt(num_left, min(LEAST_IN_EACH_STATE, kills // 10))):
                fed.wait_for(campaign.run, timeout_s=60)
                campaign.run = fed.submit(text)
                runs.append(campaign.run)
                campaign.await_start()
        views = [fed.wait_for(run, timeout_s=1200) for run in runs]
        found = report(campaign, reference, views)
        if not private:
            return found | {"bit_identical": all(same_weights(fed, view, reference) for view in views)}
        return found | ledger_figures(fed, [reference, *views], steps, campaign.kills)


def report(campaign: Campaign, reference: dict[str, Any], views: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows and files say."""
    fed, kills = campaign.fed, campaign.kills
    planned = list(range(1, reference["rounds_planned"] + 1))
    recoveries = {i: s for i, kill in enumerate(kills) if (s := campaign.recovery_s(kill)) is not None}
    times = sorted(recoveries.values())
    slowest = sorted(recoveries, key=recoveries.__getitem__, reverse=True)[:5]
    return {
        "kills": len(kills),
        "kills_by_target": dict(Counter(k.target for k in kills)),
        "kills_by_state": dict(Counter(k.state for k in kills)),
        "runs": len(views),
        "rounds_committed": sum(view["rounds_committed"] for view in views),
        "round_s": round_s(reference),
        "gaps": sum(committed(fed, view) != planned for view in views),
        "orphans": len(orphans(fed, [reference, *views], keep_last=2)),
        "recoveries": len(times),
        "recovery_median_s": times[len(times) // 2] if times else 0.0,
        "recovery_p95_s": times[min(len(times) - 1, int(0.95 * len(times)))] if times else 0.0,
        "slowest": [(kills[i].target, kills[i].state, round(recoveries[i], 2)) for i in slowest],
    }


def same_weights(fed: Federation, view: dict[str, Any], reference: dict[str, Any]) -> bool:
    """Whether two runs ended in the same bits, on disk and by the hash in SQL."""
    mine, other = fed.weights(view["id"]), fed.weights(reference["id"])
    same = all(mine[name].tobytes() == other[name].tobytes() for name in other)
    return same and bool(view["weights_sha256"] == reference["weights_sha256"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--lose", type=int, default=0, choices=(0, 1, 2, 3), help="silos that are lost for good")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000, help="training steps a round; 2000 take 3 s and more")
    parser.add_argument("--secure", action="store_true", help="with secure aggregation")
    parser.add_argument("--private", action="store_true", help="with differential privacy, and masked")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.lose:
        result = run_losses(options.kills, options.lose, options.seed, options.rounds, options.steps)
    else:
        kinds = {"secure": options.secure, "private": options.private}
        result = run_campaign(options.kills, options.seed, options.rounds, options.steps, **kinds)
    print(json.dumps(result) if options.json else "\n".join(f"{k:18} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
