"""A rank of several that train one private round together, in a process of its own: `python -m tests.unit.dp.ranks`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedplat.spec.privacy import PrivacyUnit
from fedplat_silo.trainer.ddp import Place, meet
from fedplat_silo.trainer.dp import training
from fedplat_silo.trainer.dp.noise import noised
from tests.unit.dp.world import Toy, flat, make_examples, make_round, make_spec, make_terms, mlp

KEY = bytes(range(32))
PATIENTS = torch.arange(30) % 11
Patch = Callable[[int], None]


def noise_per_rank(rank: int) -> None:
    """Broken: each rank adds noise of its own."""

    def release(sums: Tensor, parameters: list[nn.Parameter], work: Any, terms: Any) -> None:
        found = noised(sums, terms.noise_multiplier * terms.clip_norm, terms.expected_batch_size)
        dist.all_reduce(found)
        for parameter, part in training.split(found, parameters).items():
            parameter.grad = part.view_as(parameter)

    training.release = release


def whole_mask(rank: int) -> None:
    """Broken: all ranks take the same sample, whole."""
    training.np = type("np", (), {"array_split": lambda chosen, num_ranks: [chosen] * num_ranks, "ndarray": np.ndarray})  # type: ignore[assignment]


def own_masks(rank: int) -> None:
    """Broken: each rank samples for itself."""
    training.shared_key = lambda place: bytes([rank]) * 32


@dataclass(frozen=True)
class Scenario:
    """`exact`: known samples, no noise."""

    num_ranks: int
    exact: bool = True
    terms: dict[str, Any] = field(default_factory=dict)
    num_examples: int = 30
    wide: bool = False
    patch: Patch | None = None


SCENARIOS = {
    "one": Scenario(1),
    "two": Scenario(2),
    "four": Scenario(4),
    "few one": Scenario(1, num_examples=3),
    "few four": Scenario(4, num_examples=3),
    "patients one": Scenario(1, terms={"unit": PrivacyUnit.PATIENT}),
    "patients two": Scenario(2, terms={"unit": PrivacyUnit.PATIENT}),
    "noise two": Scenario(2, exact=False, terms={"rate": 1e-12, "steps": 1}, wide=True),
    "noise per rank": Scenario(2, exact=False, terms={"rate": 1e-12, "steps": 1}, wide=True, patch=noise_per_rank),
    "whole mask": Scenario(2, patch=whole_mask),
    "own masks": Scenario(2, patch=own_masks),
}


def play(scenario: Scenario, place: Place) -> Tensor:
    """How far the model has moved."""
    saved = {name: getattr(training, name) for name in ("noised", "shared_key", "release", "np")}
    if scenario.exact:
        training.noised = lambda sums, deviation, divisor: sums / divisor
        training.shared_key = lambda place: KEY
    if scenario.patch:
        scenario.patch(place.rank)
    try:
        examples = make_examples(scenario.num_examples, 300 if scenario.wide else 5, PATIENTS[: scenario.num_examples])
        model = nn.Linear(300, 300) if scenario.wide else mlp()
        if scenario.wide:
            nn.init.zeros_(model.weight)
            nn.init.zeros_(model.bias)
        terms = make_terms(examples, **scenario.terms)
        before = flat(model)
        training.train_private(Toy(make_spec()), make_round(model, examples, terms, place=place), terms)
        return flat(model) - before
    finally:
        for name, value in saved.items():
            setattr(training, name, value)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    for name, scenario in SCENARIOS.items():
        if scenario.num_ranks > 1 and rank < scenario.num_ranks:
            place = Place(rank, scenario.num_ranks)
            meet(place, folder / f"store {name}")
            np.save(folder / f"{name} {rank}.npy", play(scenario, place).numpy())
            dist.barrier()
            dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
