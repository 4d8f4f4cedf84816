"""A report is as it was signed, or it is refused."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import pytest

from fedplat.errors import IdentityError, WireError
from fedplat.identity import fingerprint, new_key
from fedplat.report import ReportFile, data_of, render, sign_report, unsigned_report, verify_report
from tests.unit.report.scene import KEY, signed

FP = fingerprint(KEY.public_key())


def altered(change: Any) -> str:
    raw = json.loads(render(signed(), "json"))
    change(raw)
    return json.dumps(raw)


def test_a_report_comes_back(file: ReportFile) -> None:
    verdict = verify_report(render(file, "json"), FP)
    assert (verdict.file, verdict.fingerprint, verdict.is_known) == (file, FP, True)
    assert verify_report(render(file, "json")).is_known is False


def test_the_page_comes_back(file: ReportFile) -> None:
    assert verify_report(data_of(render(file, "html")), FP).file == file


def _epsilon(raw: Any) -> None:
    raw["report"]["privacy_loss"]["lifetime"]["epsilon"] = 0.1


def _release(raw: Any) -> None:
    raw["report"]["accounting"]["releases"].pop()


def _head(raw: Any) -> None:
    raw["report"]["governance"]["ledger"]["head"] = "1" * 64


def _silo(raw: Any) -> None:
    raw["report"]["silo"] = "hospital-b"


@pytest.mark.parametrize("change", [_epsilon, _release, _head, _silo])
def test_every_field_is_under_the_signature(change: Any) -> None:
    with pytest.raises(IdentityError, match="not as it was signed"):
        verify_report(altered(change))


def test_another_key_is_refused(file: ReportFile) -> None:
    stranger = sign_report(new_key(), file.report)
    assert stranger.signature is not None
    assert not verify_report(render(stranger, "json")).is_known
    with pytest.raises(IdentityError, match="another key than that of silo hospital-a"):
        verify_report(render(stranger, "json"), FP)
    named = stranger.signature.model_copy(update={"fingerprint": FP})
    with pytest.raises(IdentityError, match="names another key"):
        verify_report(render(stranger.model_copy(update={"signature": named}), "json"), FP)


def test_an_unsigned_report_says_why(file: ReportFile) -> None:
    with pytest.raises(IdentityError, match="not signed") as caught:
        verify_report(render(unsigned_report(file.report, "no key here"), "json"))
    assert caught.value.hint == "no key here"


def test_a_signature_that_was_taken_away_or_is_none(file: ReportFile) -> None:
    bare = file.model_copy(update={"signature": None})
    with pytest.raises(IdentityError, match="not signed") as caught:
        verify_report(render(bare, "json"))
    assert "taken away" in caught.value.hint
    with pytest.raises(IdentityError, match="not as it was signed"):
        verify_report(altered(lambda raw: raw["signature"].update(key="hello")))


def test_what_is_missing_or_too_much_is_named() -> None:
    with pytest.raises(WireError, match=r"report\.privacy_loss\.lifetime\.epsilon is missing"):
        verify_report(altered(lambda raw: raw["report"]["privacy_loss"]["lifetime"].pop("epsilon")))
    with pytest.raises(WireError, match=r"report\.note is not known"):
        verify_report(altered(lambda raw: raw["report"].update(note="safe")))
    with pytest.raises(WireError, match="cut off"):
        verify_report(altered(lambda raw: None)[:-100])


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, '{"a": 1, "a": 2}'])
def test_what_is_no_report(text: str) -> None:
    with pytest.raises(WireError):
        verify_report(text)


def test_nothing_is_said_twice(file: ReportFile) -> None:
    text = render(file, "json").replace('"unsigned_because": ""', '"unsigned_because": "", "unsigned_because": ""')
    with pytest.raises(WireError):
        verify_report(text)


def test_a_report_has_one_form() -> None:
    """What readers of JSON may understand differently is not signed."""
    with pytest.raises(WireError, match="another form"):
        verify_report(altered(lambda raw: raw["report"]["governance"]["ledger"].update(seq="9")))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("at most 59 times", "at most 51 times"),
        ("</main>", "<p>Approved.</p></main>"),
        ("<style>", "<style>.attention{display:none}"),
    ],
)
def test_a_page_that_says_something_else_than_its_data(file: ReportFile, old: str, new: str) -> None:
    page = render(file, "html")
    assert old in page
    with pytest.raises(IdentityError, match="does not say"):
        data_of(page.replace(old, new, 1))


def test_a_page_without_data(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="no privacy report inside"):
        data_of(f"<!DOCTYPE html>{escape('<pre>')}")
