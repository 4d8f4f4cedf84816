"""NVIDIA FLARE's own round, for the benchmark: its simulator with two clients that add a constant, timed by its log."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

_JOB = """
import sys, time
import numpy as np
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_common.np.np_model_persistor import NPModelPersistor
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import FrameworkType, ScriptRunner

floats, rounds, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
job = FedJob(name="bench")
job.to_server(FedAvg(num_clients=2, num_rounds=rounds))
job.to_server(NPModelPersistor(), id="persistor")
for client in ("site-1", "site-2"):
    job.to(ScriptRunner(script=folder + "/client.py", script_args=str(floats), framework=FrameworkType.NUMPY), client)
job.simulator_run(folder + "/work")
"""
_CLIENT = """
import sys
import numpy as np
import nvflare.client as flare
from nvflare.app_common.abstract.fl_model import FLModel

floats = int(sys.argv[1])
flare.init()
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    held = model.params.get("numpy_key")
    fits = held is not None and held.size == floats
    weights = held + np.float32(0.01) if fits else np.zeros(floats, np.float32)
    flare.send(FLModel(params={"numpy_key": weights}))
"""


def time_flare(python: Path, floats: int, rounds: int) -> float:
    """Seconds a round; the first is left out (its model is not there yet). RuntimeError with what it printed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        (Path(folder) / "job.py").write_text(_JOB)
        (Path(folder) / "client.py").write_text(_CLIENT)
        words = [str(python), f"{folder}/job.py", str(floats), str(rounds + 1), folder]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        times = re.findall(r"(\d\d):(\d\d):(\d\d),(\d{3}).*Aggregated 2/2 results", done.stdout + done.stderr)
    if len(times) < rounds + 1:
        raise RuntimeError(f"NVIDIA FLARE did not run: {(done.stdout + done.stderr)[-2000:]}")
    seconds = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times]
    return (seconds[-1] - seconds[0]) / (len(seconds) - 1)
