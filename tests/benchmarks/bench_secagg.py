"""What masking costs a silo: weigh, quantise and mask one update, beside Flower's SecAgg+ functions on the same vector
in the same run (weigh, quantise, its self mask, one mask a peer, modulus; its key agreement is left out, ours and the
share bundles are in).

    python tests/benchmarks/bench_secagg.py [--quick] [--json] [--rounds]

Seconds are of one core (process time). `extra_memory_mb`: the peak above the update itself, which becomes the masked
vector in place. `--rounds`: whole rounds of a real federation as well, secure ones beside plain ones (100 M floats
unless --quick, and 1 k), and 32 silos of which 8 vanish.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fedplat.identity.keys import fingerprint, new_key
from fedplat.secagg import prg, silo
from fedplat.secagg.fixedpoint import Segment, VectorFormat, quantise
from fedplat.secagg.messages import Roster
from fedplat.secagg.roster import RunBinding
from fedplat.secagg.rules import SiloRules
from fedplat.secagg.state import SiloState, open_run
from fedplat.secagg.terms import StepTerms
from tests.benchmarks.secure_rounds import dropouts, overhead

CLIP, WEIGHT, TARGET_RANGE, MOD_RANGE = 1.0, 0.5, 1 << 22, 1 << 32
BINDING = RunBinding(ca_fingerprint="ca" * 32, run="bench", spec_hash="5e" * 32)


def begun(num_silos: int) -> SiloState:
    """A silo that has accepted the roster of so many."""
    names = [f"silo-{i:02}" for i in range(num_silos)]
    identities = [new_key() for _ in names]
    offers = [silo.offer_key(open_run(None, BINDING, n), k, 1) for n, k in zip(names, identities, strict=True)]
    known = {n: fingerprint(k.public_key()) for n, k in zip(names, identities, strict=True)}
    roster = Roster(epoch=1, first_step=1, keys=tuple(key for _, key in offers))
    return silo.accept_roster(offers[num_silos // 2][0], SiloRules(known=known, min_cohort=2), roster)


def update(num_floats: int) -> npt.NDArray[np.float32]:
    """An update, made in small parts so that making it leaves no peak."""
    values = np.empty(num_floats, np.float32)
    generator = np.random.default_rng(0)
    for start in range(0, num_floats, 1 << 16):
        part = values[start : start + (1 << 16)]
        part[:] = generator.standard_normal(len(part), np.float32) * np.float32(CLIP / 4)
    return values


def ours(values: npt.NDArray[np.float32], state: SiloState) -> float:
    """Seconds from the update to masked words, share bundles included. `values` is overwritten."""
    assert state.roster is not None
    names = tuple(key.name for key in state.roster.keys)
    vector = VectorFormat(len(names), (Segment(len(values), CLIP),))
    terms = StepTerms(1, names, False, "aa" * 32, "bb" * 32, "cc" * 32, vector)
    begin = time.process_time()
    words, weight = values.view(np.uint32), int(vector.limit * WEIGHT)
    quantise(values, words, bound=CLIP, limit=weight, rounding_key=bytes(32), offset=0)
    opened, _ = silo.begin_step(state, SiloRules(known={}, min_cohort=2), terms, words)
    assert opened.record is not None
    prg.apply(words, silo.masks(opened.name, opened.record))
    return time.process_time() - begin


def flowers(values: npt.NDArray[np.float32], num_silos: int) -> float:
    """Seconds of the same with Flower's functions, at its default ranges."""
    begin = time.process_time()
    parameters = quantize(parameters_multiply([values], WEIGHT), CLIP, TARGET_RANGE)
    shapes = [array.shape for array in parameters]
    parameters = parameters_addition(parameters, pseudo_rand_gen(bytes(range(32)), MOD_RANGE, shapes))
    for peer in range(num_silos - 1):
        mask = pseudo_rand_gen(peer.to_bytes(32, "little"), MOD_RANGE, shapes)
        combine = parameters_addition if peer % 2 else parameters_subtraction
        parameters = combine(parameters, mask)
    parameters_mod(parameters, MOD_RANGE)
    return time.process_time() - begin


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def large(num_floats: int) -> dict[str, float]:
    """One large vector with four silos. To be measured first: the peak is that of the whole process."""
    state = begun(4)
    ours(update(1 << 16), state)
    values = update(num_floats)
    before = peak_mb()
    seconds = ours(values, state)
    return {
        "floats_large": num_floats,
        "mask_seconds_100m_4_silos": seconds * 1e8 / num_floats,
        "extra_memory_mb": peak_mb() - before,
    }


def against_flower(num_floats: int, num_silos: int, repeats: int) -> dict[str, float]:
    """Medians of both: large arrays cost page faults, and those vary."""
    state, values = begun(num_silos), update(num_floats)
    mine = statistics.median(ours(values.copy(), state) for _ in range(repeats))
    other = statistics.median(flowers(values, num_silos) for _ in range(repeats))
    return {
        f"seconds_{num_silos}_silos": mine,
        f"flower_seconds_{num_silos}_silos": other,
        f"ratio_vs_flower_{num_silos}_silos": other / mine,
    }


def rounds(*, quick: bool) -> dict[str, float]:
    """What secure rounds cost beside plain ones, from outside; and 32 silos of which 8 vanish."""
    big = "10m" if quick else "100m"
    cells = {
        big: overhead(10_000_000 if quick else 100_000_000, rounds=3, repeats=1 if quick else 2),
        "1k": overhead(1_000, rounds=20, repeats=3),
    }
    result = {f"round_{key}_{size}": value for size, cell in cells.items() for key, value in cell.items()}
    return result | {f"32_silos_8_dropped_{key}": value for key, value in dropouts(32, 8, 10_000_000).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 M floats (scaled to 100 M), 2 M against Flower")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", action="store_true")
    options = parser.parse_args()
    result = large(10_000_000 if options.quick else 100_000_000)
    floats = 2_000_000 if options.quick else 20_000_000
    result["floats_against_flower"] = floats
    for num_silos, repeats in ((4, 5), (16, 3), (64, 1)):
        result |= against_flower(floats, num_silos, repeats)
    if options.rounds:
        result |= rounds(quick=options.quick)
    print(json.dumps(result) if options.json else "\n".join(f"{k:32} {v:.4g}" for k, v in result.items()))


if __name__ == "__main__":
    main()
