"""Messages through Flower's records: what arrives is what was sent, or a WireError."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplat.errors import WireError
from fedplat.metrics import MetricSums
from fedplat.reasons import Code, Reason
from fedplat.spec.model import Precision
from fedplat.wire.buffers import BufferRef, to_bytes
from fedplat.wire.codec import from_record, to_record
from fedplat.wire.messages import EvaluateReply, JoinReply, TrainReply, TrainRequest, WeightsReply, WeightsRequest

HASH = "0" * 64
REF = BufferRef(size_bytes=5 << 20, pieces=("1" * 64, "2" * 64))
REQUEST = TrainRequest(run="run-1", spec_hash=HASH, round=2, step=3, roster=("a", "b"), evaluate=True)
REPLY = TrainReply(
    run="run-1",
    silo="a",
    round=2,
    step=3,
    weight=12.5,
    num_examples=100,
    evaluated=MetricSums.of_classes(np.array([0.2, 0.9]), np.array([0, 1]), np.array([0.1, 0.2])),
)


def record(**changes: object) -> RecordDict:
    """The record of REQUEST with `changes` in its config; None removes."""
    config = dict(to_record(REQUEST).config_records["fedplat"]) | changes
    return RecordDict({"fedplat": ConfigRecord({k: v for k, v in config.items() if v is not None})})  # type: ignore[misc]


def body(**changes: object) -> RecordDict:
    """The record of REQUEST with `changes` in its body."""
    return record(body=json.dumps(REQUEST.model_dump(mode="json") | changes))


@pytest.mark.parametrize("message", [REQUEST, REPLY, REQUEST.model_copy(update={"buffer": REF})])
def test_round_trip(message: TrainRequest | TrainReply) -> None:
    vector = np.array([0, -0.0, np.inf, np.nan, 1e-45], dtype=np.float32)
    parcel = from_record(to_record(message, to_bytes(vector, Precision.FP32)), type(message))
    assert parcel.body == message
    assert parcel.vector(5).tobytes() == vector.tobytes()
    assert not parcel.vector(5).flags.writeable


def test_a_buffer_of_halves_becomes_float32() -> None:
    vector = np.array([0, -0.0, np.inf, 1.5, -3e38], dtype=np.float32)
    parcel = from_record(to_record(REQUEST, to_bytes(vector, Precision.BF16)), TrainRequest)
    assert len(parcel.buffer) == 10
    found = parcel.vector(5, Precision.BF16)
    assert found.dtype == np.float32
    assert found.tolist() == [0, 0, np.inf, 1.5, pytest.approx(-3e38, rel=2**-8)]
    assert np.signbit(found[1])


def test_what_has_no_buffer_has_an_empty_one() -> None:
    assert from_record(to_record(REQUEST), TrainRequest).buffer == b""
    assert from_record(to_record(REQUEST), TrainRequest).vector(0).tolist() == []


@pytest.mark.parametrize(
    ("size", "precision"),
    [(0, "fp32"), (1, "fp32"), (3, "fp32"), (10**15, "fp32"), (2, "bf16"), (5, "bf16"), (2**62, "bf16")],
)
def test_buffer_of_another_length(size: int, precision: str) -> None:
    parcel = from_record(to_record(REQUEST, bytes(8)), TrainRequest)
    with pytest.raises(WireError, match=f"8 bytes, not {size} numbers in {precision}"):
        parcel.vector(size, Precision(precision))


def test_equal_messages_are_equal_bytes() -> None:
    assert to_record(REPLY).config_records["fedplat"]["body"] == to_record(REPLY).config_records["fedplat"]["body"]


def test_failure_travels() -> None:
    reply = JoinReply(run="run-1", silo="a", failed=Reason.of(Code.COLUMN_MISSING, column="age"))
    assert str(from_record(to_record(reply), JoinReply).body.failed) == "its data has no column 'age'"


def test_another_type_is_refused_even_where_the_fields_fit() -> None:
    weights = to_record(WeightsReply(run="run-1", silo="a"))
    with pytest.raises(WireError, match="'WeightsReply' came where JoinReply was expected") as caught:
        from_record(weights, JoinReply)
    assert caught.value.hint
    with pytest.raises(WireError, match="EvaluateReply"):
        from_record(to_record(REPLY), EvaluateReply)
    with pytest.raises(WireError, match="WeightsRequest"):
        from_record(to_record(REQUEST), WeightsRequest)


def garbage() -> dict[str, RecordDict]:
    """Records that are not a TrainRequest, by what is wrong."""
    good = to_record(REQUEST)
    extra = RecordDict({"fedplat": good["fedplat"], "more": ConfigRecord({})})
    arrays = RecordDict({"fedplat": ArrayRecord({"a": Array(np.zeros(2))})})
    return {
        "empty": RecordDict(),
        "other key": RecordDict({"other": good["fedplat"]}),
        "arrays": arrays,
        "metrics": RecordDict({"fedplat": MetricRecord({"a": 1})}),
        "second record": extra,
        "extra config": record(more=1),
        "no body": record(body=None),
        "no buffer": record(buffer=None),
        "no type": record(type=None),
        "body of bytes": record(body=b"{}"),
        "body of numbers": record(body=[1, 2]),
        "buffer of text": record(buffer="abc"),
        "type of numbers": record(type=[1]),
        "not JSON": record(body="{"),
        "empty text": record(body=""),
        "a list": record(body="[]"),
        "null": record(body="null"),
        "deep": record(body="[" * 100_000),
        "long number": record(body='{"round": ' + "9" * 100_000 + "}"),
        "not Unicode": record(body='{"run": "\\ud800"}'),
        "version": body(version=2),
        "extra key": body(extra=1),
        "NaN": body(proximal_mu=float("nan")),
        "negative": body(round=-1),
        "run": body(run="../x"),
        "run with newline": body(run="run-1\n"),
        "hash": body(spec_hash="0" * 63),
        "roster": body(roster=["a\nb"]),
        "buffer without pieces": body(buffer={"size_bytes": 1, "pieces": []}),
        "buffer of nothing": body(buffer={"size_bytes": 0, "pieces": []}),
        "buffer with a piece too many": body(buffer={"size_bytes": 4 << 20, "pieces": [HASH, HASH]}),
        "buffer of another hash": body(buffer={"size_bytes": 1, "pieces": ["0" * 63]}),
        "buffer that is huge": body(buffer={"size_bytes": 2**70, "pieces": [HASH]}),
    }


@pytest.mark.parametrize("wrong", sorted(garbage()))
def test_garbage_is_a_wire_error(wrong: str) -> None:
    with pytest.raises(WireError) as caught:
        from_record(garbage()[wrong], TrainRequest)
    assert len(str(caught.value)) < 500
    assert "\n" not in caught.value.message


def test_hostile_keys_stay_on_one_line() -> None:
    with pytest.raises(WireError) as caught:
        from_record(body(**{"\n\x1b[2J root: all is well": 1}), TrainRequest)
    assert caught.value.message.isprintable()


@settings(deadline=None)
@given(
    st.text()
    | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
        json.dumps
    )
)
def test_any_text_is_a_wire_error(text: str) -> None:
    with pytest.raises(WireError):
        from_record(record(body=text), TrainRequest)
