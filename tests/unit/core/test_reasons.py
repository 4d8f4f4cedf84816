"""What silos may say: every code in words, and no word that breaks out of its sentence."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedplat.reasons import PASSING, Code, Reason
from fedplat.secagg.errors import Refusal

WORDS = ("rule", "dataset", "part", "column", "task", "phase", "what", "status", "restarts")
FIGURES = ("dataset", "total", "budget", "delta", "spent", "committed", "asked")
PLAIN_TEXT = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=50)


@pytest.mark.parametrize("code", Code)
def test_every_code_reads_as_a_sentence(code: Code) -> None:
    with_rule = code in (Code.POLICY, Code.MASKING_STATE, Code.MASKING_REFUSED)
    names = FIGURES if code is Code.BUDGET_EXCEEDED else WORDS[:1] if with_rule else WORDS[1:]
    reason = Reason(code=code, words={name: f"<{name}>" for name in names})
    for text in (str(reason), reason.hint):
        assert text
        assert not re.search(r"[{}?]", text), text
        assert not text.endswith(".")


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_of_secure_aggregation_reads_as_a_sentence(refusal: Refusal) -> None:
    reason = Reason.of_refusal(refusal)
    for text in (str(reason), reason.hint):
        assert text
        assert not re.search(r"[{}?]|_TEXT", text), text
    assert (reason.code in PASSING) is True, "a person can mend it, or a new epoch does"


def test_words_and_numbers_are_put_in() -> None:
    assert str(Reason.of(Code.COLUMN_MISSING, column="age")) == "its data has no column 'age'"
    failed = Reason.of(Code.WORKERS_FAILED, phase="training", status=-9, restarts=3)
    assert str(failed) == "its training workers failed while training (exit status -9) after 3 restarts"
    unknown = Reason.of(Code.DATASET_UNKNOWN, dataset="ecg")
    assert unknown.hint == "at the silo: fedplat client join --silo NAME --data ecg=PATH"


def test_missing_words_leave_a_mark_and_extra_ones_nothing() -> None:
    assert str(Reason.of(Code.TASK_FAILED, shoe="42")) == "the task failed while ?"


@pytest.mark.parametrize(
    "word", ["{0.__class__}", "{status}", "{column!r}", "{", "}}", "%s", "'; --", "\\", "\\1", "\\g<0>"]
)
def test_words_are_never_interpreted(word: str) -> None:
    reason = Reason(code=Code.WORKERS_FAILED, words={"phase": word, "status": 1, "restarts": 2, "column": "c"})
    expected = f"its training workers failed while {word} (exit status 1) after 2 restarts"
    assert str(reason) == expected


@settings(deadline=None)
@given(PLAIN_TEXT, PLAIN_TEXT)
def test_any_plain_word_survives(first: str, second: str) -> None:
    reason = Reason.model_validate_json(Reason.of(Code.NO_MAJORITY, what=first, other=second).model_dump_json())
    assert str(reason) == f"the silos disagree on the {first}, and none is the most common"


@pytest.mark.parametrize(
    "word",
    [
        "a\nb", "a\n", "\r", "\t", "\x00", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\u2066",
        "x" * 201, 2**63, -(2**63) - 1, 10**4000, None, 0.5, ["a"], {"a": "b"},
    ],
)  # fmt: skip
def test_words_that_could_break_out_are_refused(word: object) -> None:
    with pytest.raises(ValidationError):
        Reason.model_validate({"code": "policy", "words": {"rule": word}})


def test_hostile_shapes_are_refused() -> None:
    for raw in (
        {"code": "no_such_code"},
        {"code": "policy", "text": "free"},
        {"code": "policy", "words": {f"w{i}": 1 for i in range(9)}},
        {"code": "policy", "words": {"a\nb": "c"}},
    ):
        with pytest.raises(ValidationError):
            Reason.model_validate(raw)
