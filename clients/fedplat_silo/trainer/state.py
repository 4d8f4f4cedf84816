"""What one rank's training is between two steps, as tensors: all that the steps to come depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedplat.metrics import MetricSums

if TYPE_CHECKING:
    from fedplat_silo.trainer.loop import LocalRound, Meter

_PARAMETER, _OPTIMIZER, _BUFFER = "parameter.", "optimizer.", "buffer."
_SUMS, _RANDOM, _RANDOM_GPU = "sums", "random", "random.gpu"


def take_state(work: LocalRound, optimizer: torch.optim.Optimizer, meter: Meter) -> dict[str, Tensor]:
    """What is this rank's own: buffers, random states, sums so far. At rank 0 also what all ranks have the same of:
    the parameters that learn, local ones too, and the optimiser's state."""
    own = {_BUFFER + name: buffer for name, buffer in work.module.named_buffers()}
    own[_SUMS] = torch.frombuffer(bytearray(meter.total().model_dump_json().encode()), dtype=torch.uint8)
    own[_RANDOM] = torch.get_rng_state()
    if work.place.device.type == "cuda":
        own[_RANDOM_GPU] = torch.cuda.get_rng_state(work.place.device)
    if work.place.rank:
        return own
    learning = {_PARAMETER + name: p for name, p in work.module.named_parameters() if p.requires_grad}
    state = {
        f"{_OPTIMIZER}{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    return own | learning | state


@torch.no_grad()
def put_state(work: LocalRound, optimizer: torch.optim.Optimizer, meter: Meter, tensors: dict[str, Tensor]) -> None:
    """Makes everything as it was when `tensors` were taken."""
    for name, parameter in work.module.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(tensors[_PARAMETER + name])
    for name, buffer in work.module.named_buffers():
        buffer.copy_(tensors[_BUFFER + name])
    state: dict[int, dict[str, Tensor]] = {}
    for key in (key for key in tensors if key.startswith(_OPTIMIZER)):
        index, _, name = key.removeprefix(_OPTIMIZER).partition(".")
        state.setdefault(int(index), {})[name] = tensors[key]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    meter.begin_with(MetricSums.model_validate_json(tensors[_SUMS].numpy().tobytes()))
    torch.set_rng_state(tensors[_RANDOM])
    if work.place.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[_RANDOM_GPU], work.place.device)
