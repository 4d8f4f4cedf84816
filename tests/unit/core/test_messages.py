"""What the two sides may say to each other, and what they refuse to hear."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fedplat.params import Layout, Parameter
from fedplat.spec import ModelSection
from fedplat.wire.http import EnrolReply, Problem, Progress, WakeRequest
from fedplat.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    JoinRequest,
    Timings,
    TrainReply,
    TrainRequest,
    WeightsReply,
    WeightsRequest,
    WireMessage,
    WireParameter,
    layout_from_wire,
    layout_to_wire,
)

HASH = "0" * 64
REPLY = {"run": "run-1", "silo": "a", "round": 1, "step": 1}
PAIRS: list[tuple[type[WireMessage], type[WireMessage], str]] = [
    (JoinRequest, JoinReply, "query.join"),
    (WeightsRequest, WeightsReply, "query.weights"),
    (TrainRequest, TrainReply, "train"),
    (EvaluateRequest, EvaluateReply, "evaluate"),
]


@pytest.mark.parametrize(("request_type", "reply_type", "kind"), PAIRS)
def test_request_and_reply_are_of_one_kind(
    request_type: type[WireMessage], reply_type: type[WireMessage], kind: str
) -> None:
    assert request_type.kind == reply_type.kind == kind


def test_layout_travels() -> None:
    parameters = [
        Parameter("a.weight", (3, 2), "float32"),
        Parameter("a.count", (), "int64"),
        Parameter("b.weight", (0, 4), "bfloat16"),
        Parameter("c", (5,), "float32"),
    ]
    layout = Layout.assign(parameters, ModelSection(frozen=("c",), local=("b.*",)))
    reply = JoinReply(run="run-1", silo="a", layout=layout_to_wire(layout))
    again = layout_from_wire(JoinReply.model_validate_json(reply.model_dump_json()).layout)
    assert again == layout
    assert again.fingerprint == layout.fingerprint


def test_layout_names_a_parameter_once() -> None:
    parameter = WireParameter.model_validate({"name": "a", "shape": [2], "dtype": "float32", "group": "shared"})
    with pytest.raises(ValidationError, match="listed twice"):
        JoinReply(run="run-1", silo="a", layout=(parameter, parameter))


@pytest.mark.parametrize(
    ("model", "raw"),
    [
        (TrainReply, REPLY | {"weight": 0}),
        (TrainReply, REPLY | {"weight": -1}),
        (TrainReply, REPLY | {"weight": math.nan}),
        (TrainReply, REPLY | {"weight": math.inf}),
        (TrainReply, REPLY | {"weight": 1e300}),
        (TrainReply, REPLY | {"num_examples": -1}),
        (TrainReply, REPLY | {"num_examples": 2**53}),
        (TrainReply, REPLY | {"round": 0}),
        (TrainReply, REPLY | {"silo": "x" * 201}),
        (TrainReply, REPLY | {"silo": "a\nb"}),
        (TrainReply, REPLY | {"version": 2}),
        (TrainReply, REPLY | {"log": "Mrs Miller"}),
        (TrainReply, REPLY | {"evaluated": {"counts": {"examples": [-1]}}}),
        (TrainReply, REPLY | {"failed": {"code": "policy", "text": "Mrs Miller"}}),
        (Timings, {"training_s": -1}),
        (Timings, {"training_s": math.inf}),
        (Timings, {"busy_share": 1.1}),
        (JoinRequest, {"run": "r", "spec_hash": HASH, "spec": "x" * 4_000_001, "num_silos": 1}),
        (JoinRequest, {"run": "r", "spec_hash": HASH.replace("0", "g"), "spec": "", "num_silos": 1}),
        (JoinRequest, {"run": "R", "spec_hash": HASH, "spec": "", "num_silos": 1}),
        (JoinReply, {"run": "r", "silo": "a", "min_cohort": 0}),
        (WireParameter, {"name": "", "shape": [1], "dtype": "float32", "group": "shared"}),
        (WireParameter, {"name": "a\x1b", "shape": [1], "dtype": "float32", "group": "shared"}),
        (WireParameter, {"name": "a", "shape": [-1], "dtype": "float32", "group": "shared"}),
        (WireParameter, {"name": "a", "shape": [1] * 17, "dtype": "float32", "group": "shared"}),
        (WireParameter, {"name": "a", "shape": [1], "dtype": "float 32", "group": "shared"}),
        (WireParameter, {"name": "a", "shape": [1], "dtype": "float32", "group": "secret"}),
        (WakeRequest, {"home": HASH, "boot": 0, "fedplat": "1"}),
        (WakeRequest, {"home": HASH, "boot": 1, "fedplat": "1", "holding": ["m"] * 1001}),
        (Progress, {"run": "r", "phase": "reading Mrs Miller"}),
        (Progress, {"run": "r", "share": 1.01}),
        (EnrolReply, {"silo": "a", "node_id": "-1", "server_key": ""}),
        (Problem, {"error": "oops", "message": ""}),
    ],
)
def test_hostile_values_are_refused(model: type[BaseModel], raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(raw)


def test_good_values_are_accepted() -> None:
    assert TrainReply.model_validate(REPLY).weight == 1.0
    assert Progress.model_validate_json('{"run": "r", "phase": "training", "share": 0.5}').share == 0.5
    assert WakeRequest.model_validate({"home": HASH, "boot": 1, "fedplat": "0.1.0"}).holding == ()


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainReply.model_validate(REPLY).weight = 2  # type: ignore[misc]
