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
from fedplat_silo.data.examples import Datasets, TensorExamples
from fedplat_silo.trainer.ddp import Place, copy_from_first, meet
from fedplat_silo.trainer.dp import metrics, training
from fedplat_silo.trainer.dp.noise import noised
from tests.unit.dp.world import Classes, Toy, flat, make_examples, make_round, make_spec, make_terms, mlp

KEY = bytes(range(32))
PATIENTS = torch.arange(30) % 11
CLASSES = 100
METRICS_NOISE = 4.0
Patch = Callable[[int], None]


def noise_per_rank(rank: int) -> None:
    """Broken: each rank adds noise of its own."""

    def release(sums: Tensor, parameters: list[nn.Parameter], work: Any, terms: Any) -> None:
        found = noised(sums, terms.noise_multiplier * terms.clip_norm, terms.expected_batch_size)
        dist.all_reduce(found)
        for parameter, part in training.split(found, parameters).items():
            parameter.grad = part.view_as(parameter)

    training.release = release


def metrics_noise_per_rank(rank: int) -> None:
    """Broken: each rank adds noise of its own to the metrics."""

    def release(total: Tensor, deviation: float, place: Place) -> Tensor | None:
        found = noised(total, deviation, 1.0)
        dist.all_reduce(found)
        return None if place.rank else found

    metrics.release = release


def whole_mask(rank: int) -> None:
    """Broken: all ranks take the same sample, whole."""
    training.np = type("np", (), {"array_split": lambda chosen, num_ranks: [chosen] * num_ranks, "ndarray": np.ndarray})  # type: ignore[assignment]


def own_masks(rank: int) -> None:
    """Broken: each rank samples for itself."""
    training.shared_key = lambda place: bytes([rank]) * 32


@dataclass(frozen=True)
class Scenario:
    """`exact`: known samples, no noise. `measured`: the metrics of a model, not its training."""

    num_ranks: int
    exact: bool = True
    terms: dict[str, Any] = field(default_factory=dict)
    num_examples: int = 30
    wide: bool = False
    measured: bool = False
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
    "metrics one": Scenario(1, measured=True),
    "metrics two": Scenario(2, measured=True),
    "metrics noise": Scenario(2, exact=False, measured=True),
    "metrics noise per rank": Scenario(2, exact=False, measured=True, patch=metrics_noise_per_rank),
    "whole mask": Scenario(2, patch=whole_mask),
    "own masks": Scenario(2, patch=own_masks),
}


def play(scenario: Scenario, place: Place) -> Tensor:
    """How far the model has moved; the vector of its metrics."""
    saved = {name: getattr(training, name) for name in ("noised", "shared_key", "release", "np")}
    saved_of_metrics = {name: getattr(metrics, name) for name in ("noised", "release", "as_sums")}
    if scenario.exact:
        training.noised = metrics.noised = lambda sums, deviation, divisor: sums / divisor
        training.shared_key = lambda place: KEY
    if scenario.patch:
        scenario.patch(place.rank)
    try:
        if scenario.measured:
            return measured(place)
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
        for name, value in saved_of_metrics.items():
            setattr(metrics, name, value)


def measured(place: Place) -> Tensor:
    """The metrics of five patients as they are released, at every rank."""
    found = torch.zeros(CLASSES**2 + 1, dtype=torch.float64)
    metrics.as_sums = lambda vector, *_: found.copy_(torch.from_numpy(vector))  # type: ignore[assignment]
    examples = TensorExamples(torch.eye(CLASSES)[:20], torch.arange(20), patients=torch.arange(20) % 5)
    spec = make_spec(privacy={"metrics": "noised", "metrics_noise_multiplier": METRICS_NOISE, "unit": "patient"})
    what = metrics.NoisedMetrics(Classes(spec), nn.Linear(1, 1), Datasets(examples, examples), place)
    what.measure(lambda share: None)
    copy_from_first([found], place)
    return found


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
