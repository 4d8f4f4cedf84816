"""What a round needs in memory does not grow with the model or with the silos: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedplat.spec.model import Precision
from fedplat.wire.buffers import to_bytes

NUM_SILOS = 8
UPDATE_MB = 40
LIMIT_MB = 60
PROBE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from fedplat.bufferfiles import Region
from fedplat.params import Group, Layout, Parameter
from fedplat.spec.model import Precision, RunSpec
from fedplat_server.aggregation import Update, WeightedMean
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.strategies import make_strategy
from fedplat_server.vectors import StoredVector

folder, num_silos, strategy, precision = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Precision(sys.argv[4])
spec = RunSpec.model_validate({
    "name": "m", "task": {"name": "t"}, "data": {"name": "d"}, "rounds": {"count": 1}, "training": {"steps": 1},
    "strategy": {"name": strategy},
})

def memory_mb(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) / 1024

def one_round(size, number):
    layout = Layout((Parameter("w", (size,), "float32"),), (Group.SHARED,))
    region = Region(folder / "update", 0, size * precision.item_bytes)
    updates = [Update(f"silo-{i}", 1.0 + i, StoredVector(region, precision)) for i in range(num_silos)]
    mean, step, checkpoints = WeightedMean(updates), make_strategy(spec).step, Checkpoints(folder / "c", "0" * 64)
    old = checkpoints.load(number - 1) if number > 1 else checkpoints.save(0, updates[0].vector, layout)
    with checkpoints.write(number, layout) as writer:
        for block, update in mean.blocks():
            state = {slot: kept.read(block.start, block.stop) for slot, kept in old.state.items()}
            weights = old.weights.read(block.start, block.stop)
            writer.add(*step(number, weights, update, mean.total_weight, state))
        writer.commit()

one_round(1000, 1)
before = memory_mb("VmHWM")
one_round((folder / "update").stat().st_size // precision.item_bytes, 1)
one_round((folder / "update").stat().st_size // precision.item_bytes, 2)
print(json.dumps(memory_mb("VmHWM") - before))
"""


@pytest.mark.parametrize(("strategy", "precision"), [("fedavg", "fp32"), ("fedadam", "fp32"), ("fedavg", "bf16")])
def test_a_round_of_large_updates_needs_little_memory(tmp_path: Path, strategy: str, precision: str) -> None:
    numbers = np.random.default_rng(0).normal(size=(UPDATE_MB << 20) // Precision(precision).item_bytes)
    (tmp_path / "update").write_bytes(to_bytes(numbers, Precision(precision)))
    words = [sys.executable, "-c", PROBE, str(tmp_path), str(NUM_SILOS), strategy, precision]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) < LIMIT_MB
