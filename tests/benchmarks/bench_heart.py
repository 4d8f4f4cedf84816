"""Accuracy on four hospitals' heart data, trained through a real server and real silos: one process a hospital, TLS on.

    python tests/benchmarks/bench_heart.py [--quick] [--dp] [--json] [--seeds N] [--methods a,b]

Published setting (FLamby): per-hospital standardisation, 15 rounds of 100 batches of 4; `declared` is the same with
declared centres and scales and learning rate 0.01; `-bf16`: weights and updates travel in half the bytes, `-masked`:
with secure aggregation. `dp_E` (with --dp) is `declared` with record-level differential privacy: epsilon E at delta
1e-3 in each silo, clip 1, Poisson samples of 4 patients on average, weights declared by records. A figure is
the mean over the hospitals of each one's accuracy on its own test patients; its mean and standard deviation are over
run seeds from 42. `pooled` is measured the same way; `pooled_records` is its accuracy over all test records,
`<hospital>-alone` that of a hospital on its own patients.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.federation import Federation, federation
from tests.support.heart import (
    HOSPITALS,
    METHODS,
    NEAR,
    POOLED,
    PRIVATE,
    accuracies,
    accuracy,
    join_hospitals,
    prepare,
    run_method,
)

FIRST_SEED = 42
QUICK = (3, ("fedavg", "declared"))
Figures = dict[str, float]


def measure(data: Path, methods: Sequence[str], seeds: Sequence[int], parallel: int) -> dict[str, list[float]]:
    """The figures of each method, one a seed."""
    results: dict[str, list[float]] = {}
    begun = time.monotonic()
    with federation() as fed, ThreadPoolExecutor(parallel) as pool:
        folders = prepare(data, fed.folder / "data")
        used = {silo for method in methods for silo in METHODS[method].silos}
        join_hospitals(fed, {silo: folders[silo] for silo in folders if silo in used}, parallel=parallel)
        jobs = [(method, seed) for seed in seeds for method in methods]
        for (_, seed), figures in zip(jobs, pool.map(lambda job: run(fed, folders, *job), jobs), strict=True):
            for key, value in figures.items():
                results.setdefault(key, []).append(value)
            shown = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
            print(f"{time.monotonic() - begun:6.0f} s  seed {seed}: {shown}", file=sys.stderr, flush=True)
    return results


def run(fed: Federation, folders: Mapping[str, Path], method: str, seed: int) -> Figures:
    """One run's figures by name."""
    view = run_method(fed, method, seed)
    model = fed.folder / "models" / view["id"]
    if method == POOLED or METHODS[method].masked:
        fed.command("run", "export", view["id"], "--to", str(model))
    if METHODS[method].masked:  # nobody is told a hospital's own figure
        is_local = METHODS[method].scaling == "local"
        trains = {h: folders[h] / "train.csv" if is_local else None for h in HOSPITALS}
        return {method: fmean(accuracy(model, folders[h] / "test.csv", train=trains[h]) for h in HOSPITALS)}
    mean = fmean(accuracies(view).values())
    if method != POOLED:
        return {method: mean}
    train = folders[POOLED] / "train.csv"
    each = [accuracy(model, folders[hospital] / "test.csv", train=train) for hospital in HOSPITALS]
    return {POOLED: fmean(each), f"{POOLED}_records": mean}


def summary(results: Mapping[str, Sequence[float]]) -> dict[str, Figures]:
    """Mean and standard deviation over seeds."""
    return {
        name: {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else 0.0}
        for name, values in results.items()
    }


def lines(figures: Mapping[str, Figures]) -> Iterator[str]:
    """For people."""
    yield f"{'':20} {'mean':>8} {'sd':>8}"
    for name, figure in figures.items():
        yield f"{name:20} {figure['mean']:8.4f} {figure['sd']:8.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three seeds, fedavg and declared only")
    parser.add_argument("--dp", action="store_true", help=f"also {', '.join(PRIVATE)}")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many, from 42 on (default 20)")
    parser.add_argument("--methods", help=f"of {','.join(METHODS)} (default: all but the private ones)")
    parser.add_argument("--data", type=Path, default=NEAR, help="folder of the processed.*.data files")
    parser.add_argument("--parallel", type=int, default=3, help="runs at the same time; no figure depends on it")
    options = parser.parse_args()
    num_seeds, methods = QUICK if options.quick else (20, tuple(name for name in METHODS if name not in PRIVATE))
    seeds = range(FIRST_SEED, FIRST_SEED + (options.seeds or num_seeds))
    chosen = tuple(options.methods.split(",")) if options.methods else methods
    chosen += tuple(name for name in PRIVATE if options.dp and name not in chosen)
    unknown = set(chosen) - set(METHODS)
    if unknown:
        parser.error(f"no such method: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no silo is left behind
    figures = summary(measure(options.data, chosen, seeds, options.parallel))
    print(json.dumps(figures) if options.json else "\n".join(lines(figures)))


if __name__ == "__main__":
    main()
