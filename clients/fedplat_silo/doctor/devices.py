"""The check of GPUs and of what workers talk to each other by."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedplat.doctor import Check, Finding, failed, ok, warning
from fedplat_silo.console import printable
from fedplat_silo.doctor.visit import Visit
from fedplat_silo.trainer.crew import worker_environment

TIMEOUT_S = 90.0
NUM_RANKS = 2
_DRIVER = Path("/proc/driver/nvidia/gpus")  # there without any library; PyTorch may still see none


class Sum(BaseModel):
    """What `collective` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_ranks: int
    gpus: tuple[str, ...]
    is_right: bool
    torch: str


@dataclass(frozen=True)
class Broken(Exception):
    """The workers did not get that far."""

    why: str


def check(visit: Visit) -> Check:
    """A sum over two workers, on two GPUs if there are; else on the one GPU, or on the CPU."""
    return Check("workers", lambda: _look(visit), timeout_s=TIMEOUT_S + 10)


def _look(visit: Visit) -> Finding:
    num_gpus = len(list(_DRIVER.glob("*")))
    begun = time.monotonic()
    try:
        found = add_up(visit.gpus)
    except Broken as broken:
        return failed(f"workers cannot add up a number together: {broken.why}", _cure(num_gpus))
    if not found.is_right:
        return failed("workers that add up a number get a wrong sum", _cure(num_gpus))
    took = f"{time.monotonic() - begun:.1f} s, PyTorch {found.torch}"
    if found.gpus:
        what = "one worker" if found.num_ranks == 1 else "two workers"
        return ok(
            f"{len(found.gpus)} GPUs ({', '.join(sorted(set(found.gpus)))}), NCCL all-reduce of {what} ok ({took})"
        )
    if num_gpus:
        return warning(
            f"this machine has {num_gpus} GPUs, and PyTorch sees none; gloo all-reduce of two workers ok ({took})",
            "Install a CUDA build of PyTorch that fits the driver; look at CUDA_VISIBLE_DEVICES.",
        )
    return ok(f"no GPU, gloo all-reduce of two workers ok ({took})")


def _cure(num_gpus: int) -> str:
    if num_gpus:
        return "Does nvidia-smi work? NCCL_DEBUG=INFO says more; --workers trains on the CPU meanwhile."
    return "Is PyTorch installed whole (pip install 'fedplat[silo]')? Workers meet on the loopback interface."


def add_up(gpus: tuple[int, ...]) -> Sum:
    """Lets two processes add up a number. Raises Broken."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedplat-doctor-")))
        ranks = []
        for rank in range(NUM_RANKS):
            ranks.append(stack.enter_context(_start(folder / "store", rank, gpus)))
            stack.callback(ranks[rank].kill)
        deadline = time.monotonic() + TIMEOUT_S
        answers = [_answer(process, deadline - time.monotonic()) for process in ranks]
    try:
        return Sum.model_validate_json(answers[0])
    except ValidationError:
        raise Broken("they say something else than a sum") from None


def _start(store_file: Path, rank: int, gpus: tuple[int, ...]) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "fedplat_silo.doctor.collective", str(store_file), *map(str, gpus)]
    return subprocess.Popen(  # noqa: S603 (our own module)
        command,
        env=worker_environment(1) | {"RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=os.path.sep,
    )


def _answer(process: subprocess.Popen[str], timeout_s: float) -> str:
    try:
        said, problem = process.communicate(timeout=max(0.1, timeout_s))
    except subprocess.TimeoutExpired:
        raise Broken(f"no sum after {TIMEOUT_S:.0f} s") from None
    if process.returncode:
        last = (problem.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise Broken(printable(last, 200))
    return said
