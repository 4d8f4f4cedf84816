"""What a round costs when training costs nothing: two silos, 1,000 floats, TLS on, everything committed to SQL, beside
stock Flower (plain text, in memory) in the same run.

    python tests/benchmarks/bench_round.py [--quick] [--json] [--stock-flower FOLDER] [--rounds N]

FOLDER holds a stock Flower app and its `run.sh VENV FLOATS ROUNDS SILOS`; without it only fedplat is timed.
Seconds a round are taken from outside, from the rounds' own rows in SQL: first start to last commit, over the rounds.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.federation import add_constant, federation

SILOS = ("silo-a", "silo-b")
NEAR = Path(__file__).resolve().parents[3] / "shared" / "bench" / "stock_flower"


def time_fedplat(floats: int, rounds: int) -> float:
    """Seconds a round, the first one left out (connections are made in it)."""
    with federation() as fed:
        for silo in SILOS:
            fed.join(silo)
            allow_add_constant(fed.silo_home(silo))
        run = fed.submit(add_constant(size=floats, rounds=rounds + 1, silos=SILOS, minimum=2))
        view = fed.wait_for(run, timeout_s=300)
    done = [r for r in view["rounds"] if r["number"] > 1]
    begun, ended = (datetime.fromisoformat(t) for t in (done[0]["started_at"], done[-1]["finished_at"]))
    return (ended - begun).total_seconds() / len(done)


def allow_add_constant(home: Path) -> None:
    """A silo's administrator allows the task of this benchmark."""
    policy = home / "policy.toml"
    policy.write_text(policy.read_text().replace('allowed_tasks = ["tabular"]', 'allowed_tasks = ["*"]'))


def time_stock_flower(folder: Path, floats: int, rounds: int) -> float:
    """Seconds a round, as the stock app measures them."""
    venv = Path(sys.executable).parents[1]
    command = [str(folder / "run.sh"), str(venv), str(floats), str(rounds), str(len(SILOS))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"([0-9.]+) s/round", done.stdout)
    if not found:
        raise RuntimeError(f"no timing in: {done.stdout}")
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--floats", type=int, default=1000)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--stock-flower", type=Path, default=NEAR if NEAR.exists() else None)
    options = parser.parse_args()
    rounds = options.rounds or (10 if options.quick else 50)
    ours = time_fedplat(options.floats, rounds)
    result: dict[str, Any] = {"floats": options.floats, "rounds": rounds, "seconds_per_round": ours}
    result["overhead_of_60_s_round"] = ours / (60 + ours)
    if options.stock_flower:
        stock = time_stock_flower(options.stock_flower, options.floats, 2 if options.quick else 5)
        result |= {"stock_flower_seconds_per_round": stock, "ratio": stock / ours}
    print(json.dumps(result) if options.json else "\n".join(f"{k:32} {v:.4g}" for k, v in result.items()))


if __name__ == "__main__":
    main()
