"""How a run went, from what the server answers about it."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from fedplat.errors import ConflictError
from fedplat_server.reports.curves import curves
from fedplat_server.reports.rundocument import run_document, run_report

AT = "2026-05-04T12:00:00.000+00:00"


def part(number: int, silo: str, **more: object) -> dict[str, Any]:
    told = {"round_number": number, "silo_name": silo, "state": "included", "reason_code": None, "reason": None}
    seconds = {
        "seconds_waiting": 1.0,
        "seconds_training": 4.0,
        "seconds_evaluating": 0.5,
        "seconds_communicating": 0.25,
    }
    rest = {"num_examples": 10, "samples_per_second": 20.0, "busy_share": 0.5, "restarts": 0}
    return told | seconds | rest | {"bytes_down": 500_000, "bytes_up": 500_000} | more


def evaluation(number: int, split: str, **figures: object) -> dict[str, Any]:
    loss = figures.pop("loss", 0.5)
    told = {"round_number": number, "split": split, "silos": ["a", "b"], "num_examples": 20}
    return told | {"loss": loss, "metrics": figures}


def view(**changes: object) -> dict[str, Any]:
    """Two rounds of two silos, the second without b; c refused."""
    base = {"state": "committed", "update_norm": 1.5, "seconds": 6.0, "without": []}
    lost = {"state": "lost", "seconds_training": None, "reason": {"text": "a worker <died>"}, "reason_code": "worker"}
    told: dict[str, Any] = {
        "id": "run-1",
        "name": "heart",
        "state": "stopped",
        "reason": "stopped by the administrator",
        "spec": {"name": "heart", "privacy": {"mode": "none"}},
        "spec_hash": "5" * 64,
        "created_at": AT,
        "rounds_committed": 2,
        "rounds_planned": 3,
        "rounds": [
            base | {"number": 1, "cohort": ["a", "b"]},
            base | {"number": 2, "cohort": ["a"], "without": ["b"]},
            base | {"number": 3, "state": "training", "cohort": [], "seconds": None, "update_norm": None},
        ],
        "evaluations": [
            evaluation(0, "test", loss=0.7, accuracy=0.5, r2=-0.5, auroc_bound=0.01),
            evaluation(1, "test", accuracy=0.8, r2=0.4),
            evaluation(1, "train", accuracy=0.9, confusion=[[1, 2], [3, 4]]),
        ],
        "silos": [
            {"silo_name": "a", "state": "accepted", "reason": None, "num_examples": 10, "info": {}},
            {"silo_name": "b", "state": "away", "reason": None, "num_examples": 12, "info": {}},
            {
                "silo_name": "c",
                "state": "refused",
                "reason": {"text": "no such dataset", "hint": "name it"},
                "num_examples": None,
                "info": {},
            },
        ],
        "silo_rounds": [part(1, "a"), part(1, "b"), part(2, "a", seconds_training=6.0), part(2, "b", **lost)],
        "secure_steps": [],
    }
    return told | changes


def test_it_says_how_the_run_ended_and_who_was_left_out_why() -> None:
    text = run_report(view(), "md").decode()
    for told in (
        "Stopped: stopped by the administrator. 2 of 3 rounds.",
        "after round 1: loss 0.5000, accuracy 0.8000, r2 0.4000",
        "| 2 | committed | 6.00 | 1: a | b \\(a worker \\<died\\>\\) | 1.5 |",
        "| c | refused | 0 |  | no such dataset name it |",
        "| a | 2 | 5.00 | 0.50 | 0.25 | 1.00 | 20 | 50% | 2.0 | 0 |",
        "5" * 64,
        '"mode": "none"',
        "no differential privacy: nothing bounds",
        "| 1 | training | 2 | 20 |",
    ):
        assert told in text, told


def test_the_spec_takes_no_more_lines_than_it_must() -> None:
    features = [{"column": f"feature {number}", "kind": "numeric", "center": 1.5, "scale": 2.0} for number in range(30)]
    spec = {"name": "heart", "privacy": {"mode": "record"}, "task": {"options": {"features": features, "none": []}}}
    told = run_document(view(spec=spec))
    text = told.chapters[-1].verbatim
    assert json.loads(text) == spec
    assert max(map(len, text.splitlines())) <= 106
    assert len(text.splitlines()) < 30 + 15
    assert "fedplat report privacy --run run-1" in told.lines[0]


def test_who_was_not_asked_is_told() -> None:
    told = view()
    told["silo_rounds"] = [one for one in told["silo_rounds"] if (one["round_number"], one["silo_name"]) != (2, "b")]
    assert "| b (not asked) |" in run_report(told, "md").decode().replace("\\", "")


def test_each_figure_has_a_curve() -> None:
    found = {figure.name: [label for label, _ in figure.legend] for figure in curves(view())}
    assert found == {
        "Loss": ["test records", "training records"],
        "R2": ["test records"],
        "Figures on the test records": ["accuracy"],
        "Figures on the training records": ["accuracy"],
    }


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e12])
def test_flat_negative_tiny_and_huge_figures_have_an_axis(value: float) -> None:
    for figure in curves(view(evaluations=[evaluation(1, "test", loss=value, mae=value)])):
        assert all(0 <= y <= figure.height for shape in figure.shapes for _, y in getattr(shape, "points", ()))


@pytest.mark.parametrize("form", ["html", "pdf", "md", "json", "csv"])
def test_a_run_without_figures_or_rounds_can_be_told_too(form: str) -> None:
    bare = view(evaluations=[], rounds=[], silo_rounds=[], rounds_committed=0)
    assert run_report(bare, form) == run_report(bare, form)
    assert b"<died>" not in run_report(view(), "html")


def test_before_anybody_answered_there_is_nothing_to_tell() -> None:
    with pytest.raises(ConflictError, match="no silo has answered"):
        run_document(view(silos=[]))


def test_json_and_csv_are_for_programs() -> None:
    assert json.loads(run_report(view(), "json")) == view()
    rows = list(csv.DictReader(io.StringIO(run_report(view(), "csv").decode())))
    assert [(row["round"], row["silo"], row["in_the_sum"]) for row in rows] == [
        ("1", "a", "1"),
        ("1", "b", "1"),
        ("2", "a", "1"),
        ("2", "b", "0"),
    ]
    assert rows[3]["reason"] == "worker"
    assert rows[3]["seconds_training"] == ""
