"""One of several processes that add up a number, as workers of a silo do: python -m ... STORE_FILE [GPU ...], with RANK
and WORLD_SIZE in the environment. The first prints what they computed with, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fedplat_silo.trainer.ddp import Place, meet


def add_up(store_file: Path, rank: int, num_ranks: int, gpus: tuple[int, ...]) -> dict[str, object]:
    """NCCL needs a GPU a rank: with a single one there is one rank. Raises what torch raises."""
    gpus = gpus or tuple(range(torch.cuda.device_count()))
    num_ranks = min(num_ranks, len(gpus)) or num_ranks
    if rank >= num_ranks:
        return {}
    device = torch.device("cuda", gpus[rank]) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    meet(Place(rank, num_ranks, device), store_file)
    number = torch.full((1024,), float(rank + 1), device=device)
    dist.all_reduce(number)
    is_right = bool((number == sum(range(1, num_ranks + 1))).all())
    dist.destroy_process_group()
    names = [torch.cuda.get_device_name(gpu) for gpu in gpus]
    return {"num_ranks": num_ranks, "gpus": names, "is_right": is_right, "torch": str(torch.__version__)}


if __name__ == "__main__":
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = add_up(Path(sys.argv[1]), rank, num_ranks, tuple(map(int, sys.argv[2:])))
    print(json.dumps(found), flush=True)  # noqa: T201 (read by fedplat_silo.doctor.devices)
