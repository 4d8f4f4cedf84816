"""What holds after any campaign, read from the server's rows and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fedplat.spec import parse_spec
from fedplat_silo.trainer.group import TrainOrder, WorkerGroup
from fedplat_silo.trainer.plan import TrainingPlan
from tests.faults.campaign import SILOS, num_workers
from tests.support.federation import Federation


def committed(fed: Federation, view: dict[str, Any]) -> list[int]:
    """The rounds in the order in which they were committed; an empty list if rows and events tell it differently."""
    query = "select detail from events where kind = 'round.committed' and run_id = ? order by seq"
    events = [json.loads(detail)["round"] for (detail,) in fed.rows(query, view["id"])]
    rows = [r["number"] for r in view["rounds"] if r["state"] == "committed"]
    return rows if events == rows and len(rows) == view["rounds_committed"] else []


def checkpoint(fed: Federation, run: str, number: int) -> Path:
    """The weights after a round."""
    return fed.folder / "server" / "server" / "runs" / run / "checkpoints" / f"round-{number:07d}.safetensors"


def orphans(fed: Federation, views: Sequence[dict[str, Any]], keep_last: int) -> list[Path]:
    """Files of the server that no row owns: anything but the last checkpoints."""
    kept = [
        checkpoint(fed, view["id"], number)
        for view in views
        for number in range(max(0, view["rounds_committed"] + 1 - keep_last), view["rounds_committed"] + 1)
    ]
    owned = {*kept, *(path.with_suffix(".json") for path in kept)}
    root = fed.folder / "server" / "server" / "runs"
    return [path for path in root.rglob("*") if path.is_file() and path not in owned]


def wrong_hashes(fed: Federation, view: dict[str, Any]) -> list[int]:
    """The committed rounds whose weights on disk are not those of SQL."""
    expected = {r["number"]: r["weights_sha256"] for r in view["rounds"] if r["state"] == "committed"}
    expected[view["rounds_committed"]] = view["weights_sha256"]
    files = {number: checkpoint(fed, view["id"], number).read_bytes() for number in expected}
    return [number for number, sha256 in expected.items() if hashlib.sha256(files[number]).hexdigest() != sha256]


def open_parts(view: dict[str, Any]) -> list[dict[str, Any]]:
    """The silos' parts in committed rounds that are not closed, or say something else than the cohort does."""
    cohorts = {r["number"]: r["cohort"] for r in view["rounds"] if r["state"] == "committed"}
    parts = [part for part in view["silo_rounds"] if part["round_number"] in cohorts]
    return [
        part
        for part in parts
        if part["state"] not in ("included", "missed", "failed")
        or (part["state"] == "included") is not (part["silo_name"] in cohorts[part["round_number"]])
    ]


def wrong_means(fed: Federation, view: dict[str, Any], spec: str) -> list[int]:
    """The rounds whose weights are not what their cohort makes of the weights before: all train again, here, without
    a server, and NumPy alone takes the mean."""
    cohorts = {r["number"]: r["cohort"] for r in view["rounds"] if r["state"] == "committed"}
    differences = dict.fromkeys(cohorts, 0.0)
    totals = dict.fromkeys(cohorts, 0)
    sums: dict[int, Any] = dict.fromkeys(cohorts, 0.0)
    for silo in SILOS:
        with workers_of(fed, spec, silo) as workers:
            ready = workers.start()
            for number in (n for n, cohort in cohorts.items() if silo in cohort):
                before = ready.layout.join(load_file(checkpoint(fed, view["id"], number - 1)))
                after = ready.layout.join(load_file(checkpoint(fed, view["id"], number)))
                update = workers.train(TrainOrder(round=number), before).update
                totals[number] += ready.num_train
                sums[number] = sums[number] + ready.num_train * update.astype(np.float64)
                mean = sums[number] / totals[number]
                differences[number] = float(np.abs(before + mean - after).max())
    return [number for number, difference in differences.items() if difference > 1e-6]


def workers_of(fed: Federation, spec: str, silo: str) -> WorkerGroup:
    """The workers of a silo, as its process would start them."""
    plan = TrainingPlan(
        spec=parse_spec(spec),
        silo=silo,
        data=fed.folder / f"{silo}.csv",
        run_dir=fed.folder / "again" / silo,
        num_workers=num_workers(silo),
    )
    return WorkerGroup(plan, fed.folder / "again.log", lambda _phase, _share: None)
