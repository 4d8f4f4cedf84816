"""`fedplat client train-alone`: reads what was typed, and shows what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedplat.durable import make_private_dir
from fedplat.errors import DataError
from fedplat.home import fedplat_home
from fedplat.spec import load_spec
from fedplat_silo.alone import POOLED, Outcome, train_alone
from fedplat_silo.datasets import parse_dataset
from fedplat_silo.trainer.group import WorkerGroup

_HIDDEN = frozenset({"auroc_bound"})


def compare(home: str | None, spec_file: Path, data: str, *, pooled: bool) -> list[Outcome]:
    """The outcomes for `data`, NAME=PATH[,PATH...]. Raises SpecError, DataError."""
    spec = load_spec(spec_file)
    name, equals, paths = data.partition("=")
    if not equals or name != spec.data.name:
        raise DataError(
            f"the spec asks for the dataset {spec.data.name!r}", hint=f"Write --data {spec.data.name}=PATH,..."
        )
    datasets = [parse_dataset(f"{name}={path}")[1] for path in paths.split(",")]
    root = fedplat_home(home)
    make_private_dir(root)
    return list(train_alone(spec, datasets, WorkerGroup, root / "train-alone.log", pooled=pooled))


def show_outcomes(outcomes: Sequence[Outcome], *, as_json: bool) -> list[str]:
    """Lines for programs or for people."""
    if as_json:
        keys = ["pooled" if outcome.trained_on == POOLED else str(i) for i, outcome in enumerate(outcomes)]
        return [json.dumps(dict(zip(keys, map(_flat, outcomes), strict=True)), indent=2)]
    figures = [name for name in outcomes[0].figures if name not in _HIDDEN]
    rows = [["trained on", "records", *figures]]
    for outcome in outcomes:
        shown = (outcome.figures.get(name) for name in figures)
        rows.append([outcome.trained_on, str(outcome.num_train), *("-" if v is None else f"{v:.4f}" for v in shown)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, f"measured on {outcomes[0].num_test} test records, those of all datasets"]


def _flat(outcome: Outcome) -> dict[str, str | int | float]:
    head: dict[str, str | int | float] = {
        "trained_on": outcome.trained_on,
        "num_train": outcome.num_train,
        "num_test": outcome.num_test,
    }
    return head | outcome.figures
