"""What a round costs when the model is big: TLS on; spool, staging, checkpoint and every fsync included; training adds
a constant. Beside stock Flower (plain text, in memory) in the same run.

    python tests/benchmarks/bench_transport.py [--quick] [--json] [--stock-flower FOLDER] [--nvflare PYTHON] [--table]

FOLDER holds a stock Flower app and its `run.sh VENV FLOATS ROUNDS SILOS`; PYTHON is the interpreter of an environment
that has NVIDIA FLARE. Everything is taken from outside: seconds from the rounds' rows in SQL, memory from the server
process's VmHWM, the bare stream from the same bytes over the same web server with TLS and nothing else.
`--table`: 1 M to 500 M floats with 2 to 16 silos, as far as the machine's memory goes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.benchmarks.bare_stream import bare_round_s
from tests.benchmarks.bench_round import NEAR, allow_add_constant, time_stock_flower
from tests.benchmarks.flare import time_flare
from tests.support.federation import add_constant, federation

FLOATS = 100_000_000
TABLE = [(floats, silos) for floats in (10**6, 10**7, 10**8, 5 * 10**8) for silos in (2, 4, 8, 16)]
# A silo holds its weights, its update and its model, each once, and Python and torch; pages of files come on top.
SILO_MODELS, SILO_BYTES, SERVER_BYTES = 3.2, 650e6, 1.5e9


@dataclass
class Cell:
    """One federation: seconds a round, and the server's peak in bytes and in models."""

    floats: int
    silos: int
    seconds_per_round: float
    server_peak_bytes: int

    @property
    def server_peak_models(self) -> float:
        """The peak, in float32 models."""
        return self.server_peak_bytes / (4 * self.floats)


def time_fedplat(floats: int, num_silos: int, rounds: int, precision: str = "fp32") -> Cell:
    """The first round is left out: connections are made in it."""
    names = tuple(f"silo-{i:02d}" for i in range(num_silos))
    with federation() as fed:
        for silo in names:
            fed.join(silo)
            allow_add_constant(fed.silo_home(silo))
        spec = add_constant(size=floats, rounds=rounds + 1, silos=names, minimum=num_silos)
        run = fed.submit(spec + f'\n[transport]\nprecision = "{precision}"\n[checkpoint]\nkeep_last = 1\n')
        view = fed.wait_for(run, timeout_s=3600)
        peak = vm_hwm_bytes(fed.processes["server"].pid)
    done = [r for r in view["rounds"] if r["number"] > 1]
    begun, ended = (datetime.fromisoformat(t) for t in (done[0]["started_at"], done[-1]["finished_at"]))
    return Cell(floats, num_silos, (ended - begun).total_seconds() / len(done), peak)


def vm_hwm_bytes(pid: int) -> int:
    """The peak of a process's resident memory."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return 1024 * int(found[1])


def memory_bytes() -> int:
    """The machine's."""
    found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found
    return 1024 * int(found[1])


def fits(floats: int, silos: int) -> bool:
    """Whether server and silos fit into this machine's memory together."""
    return silos * (SILO_MODELS * 4 * floats + SILO_BYTES) + SERVER_BYTES < 0.9 * memory_bytes()


def table(rounds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The cells that fit, and the names of those that do not."""
    rows, left_out = [], []
    for floats, silos in TABLE:
        if not fits(floats, silos):
            left_out.append(f"{floats // 10**6} M floats, {silos} silos")
            continue
        cell = time_fedplat(floats, silos, rounds)
        bare_s = bare_round_s(floats, silos)
        share = {"server_peak_models": cell.server_peak_models, "share_of_bare_stream": bare_s / cell.seconds_per_round}
        rows.append(asdict(cell) | share)
        print(rows[-1], file=sys.stderr)
    return rows, left_out


def stock_flower_s(folder: Path, floats: int, rounds: int) -> float:
    """Seconds a round of stock Flower, two silos."""
    return time_stock_flower(folder, floats, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, without the federation of 8 silos")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--floats", type=int, default=FLOATS)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--stock-flower", type=Path, default=NEAR if NEAR.exists() else None)
    parser.add_argument("--nvflare", type=Path)
    options = parser.parse_args()
    rounds = 3 if options.quick else 6
    two = time_fedplat(options.floats, 2, rounds, options.precision)
    result: dict[str, Any] = {
        "floats": options.floats,
        "seconds_per_round": two.seconds_per_round,
        "server_peak_models": two.server_peak_models,
        "share_of_bare_stream": bare_round_s(options.floats, 2) / two.seconds_per_round,
    }
    if not options.quick and fits(options.floats, 8):
        eight = time_fedplat(options.floats, 8, 2, options.precision)
        result["seconds_per_round_8_silos"] = eight.seconds_per_round
        result["server_peak_models_8_silos"] = eight.server_peak_models
        result["peak_growth_2_to_8_silos"] = eight.server_peak_bytes / two.server_peak_bytes
    if options.stock_flower and str(options.stock_flower) != "none":
        stock_s = stock_flower_s(options.stock_flower, options.floats, 2)
        result |= {"stock_flower_seconds_per_round": stock_s, "ratio": stock_s / two.seconds_per_round}
    if options.nvflare:
        flare_s = time_flare(options.nvflare, options.floats, 2)
        result |= {"nvflare_seconds_per_round": flare_s, "ratio_nvflare": flare_s / two.seconds_per_round}
    if options.table:
        result["table"], result["too_large_for_this_machine"] = table(2)
    print(json.dumps(result) if options.json else "\n".join(f"{k:32} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
