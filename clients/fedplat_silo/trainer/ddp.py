"""A worker's place among the workers of its silo, and what they do together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore
from torch.nn.parallel import DistributedDataParallel

_MEET_TIMEOUT = timedelta(seconds=30)
_WORK_TIMEOUT = timedelta(minutes=30)  # ranks may differ in speed; a dead one is noticed at once, by its socket


@dataclass(frozen=True)
class Place:
    """Rank `rank` of `num_ranks`, computing on `device`."""

    rank: int = 0
    num_ranks: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)


def meet(place: Place, store_file: Path) -> None:
    """Joins the process group through a file that belongs to this generation of workers alone."""
    store = FileStore(str(store_file), place.num_ranks)
    store.set_timeout(_MEET_TIMEOUT)
    backend = "gloo" if place.device.type == "cpu" else "nccl"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.num_ranks, timeout=_WORK_TIMEOUT)


def wrap(model: nn.Module, place: Place) -> nn.Module:
    """The model whose gradients are averaged over the ranks; the model itself where there is one rank."""
    if place.num_ranks == 1 or not any(p.requires_grad for p in model.parameters()):
        return model
    return DistributedDataParallel(model)


def from_first(number: int, place: Place) -> int:
    """Rank 0's number, at every rank."""
    shared = torch.tensor(number, device=place.device)
    copy_from_first([shared], place)
    return int(shared)


def gather_bytes(data: bytes, place: Place) -> list[bytes]:
    """Every rank's bytes, of the same length at all of them, by rank."""
    if place.num_ranks == 1:
        return [data]
    mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(place.device)
    found = [torch.empty_like(mine) for _ in range(place.num_ranks)]
    dist.all_gather(found, mine)
    return [tensor.cpu().numpy().tobytes() for tensor in found]


def copy_from_first(tensors: list[Tensor], place: Place) -> None:
    """Overwrites the tensors of all ranks by those of rank 0."""
    if place.num_ranks > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
