"""The files: one self-contained page, a schema that is true, tables that anybody can compute from."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedplat.ledger import Event
from fedplat.privacy import epsilon
from fedplat.report import FORMATS, DatasetFacts, ReportFile, make_report, render, unsigned_report
from fedplat.report.signing import AnyFile
from tests.unit.report.federation_scene import signed
from tests.unit.report.scene import material, run, spec_facts

SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "privacy-report.schema.json"
VOID = {"meta", "line", "rect", "polyline", "circle"}


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page(file: AnyFile) -> Page:
    found = Page()
    found.feed(render(file, "html"))
    found.close()
    assert found.open == []
    return found


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(file: ReportFile) -> None:
    found = page(file)
    assert {"script", "link", "img", "iframe", "object", "base", "form"}.isdisjoint(found.tags)
    assert found.tags.count("figure") == 3
    names = {name for name, _ in found.attributes}
    assert not {name for name in names if name.startswith("on") or name in ("src", "href", "style")}
    text = render(file, "html")
    assert not re.search(r"url\(|@import|https?://", text)


def test_nothing_that_is_written_in_becomes_markup() -> None:
    evil = '<script>alert("1")</script>&amp;</pre>'
    runs = (run(evil[:63], mode="</td>", spec=spec_facts(evil)),)
    dataset = DatasetFacts(name="heart", num_records=1, num_patients=1)
    report = make_report(material(runs=runs, releases=(), subject=evil[:63], datasets=(dataset,)))
    file = unsigned_report(report, evil)
    assert "script" not in page(file).tags
    assert "<script" not in render(file, "html")
    assert not re.search(r"(?<!\\)<", render(file, "md"))


def test_a_stranger_finds_the_words_and_what_is_left_open(file: ReportFile) -> None:
    for one in (file, signed()):
        text = " ".join(page(one).words)
        for told in ("e^epsilon", "Delta times the number", "serves small groups worse", "Until when it holds"):
            assert told in text, told
        assert "`" not in text


def test_how_many_patients_there_are_and_were_left_out_is_told() -> None:
    sizes = [(1500, 1000, 3), (20, None, None)]
    datasets = [
        DatasetFacts(name=f"set-{place}", num_records=records, num_patients=patients, num_excluded=excluded)
        for place, (records, patients, excluded) in enumerate(sizes)
    ]
    report = make_report(material(runs=(), releases=(), subject=None, datasets=tuple(datasets)))
    text = render(unsigned_report(report, "no key"), "md")
    assert "| set-0 | 1500 | 1000 | 3 |" in text
    assert "| set-1 | 20 | not known | none known |" in text


def test_the_csv_gives_the_same_figure(file: ReportFile) -> None:
    rows = list(csv.DictReader(io.StringIO(render(file, "csv"))))
    events = [
        Event.model_validate({k: r[k] for k in Event.model_fields}).fact() for r in rows if r["kind"] == "released"
    ]
    assert len(events) == 10
    assert epsilon(events, delta=1e-5) == file.report.privacy_loss.lifetime.epsilon
    assert [r["num_steps"] for r in rows if r["kind"] == "may_still_spend"] == ["400"]


def test_the_schema_is_the_models(file: ReportFile) -> None:
    """To write it anew: python -m fedplat.report.schema > docs/privacy-report.schema.json"""
    from fedplat.report.schema import schema

    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema()
    defined = schema()["$defs"]
    assert isinstance(defined, dict)
    for name, one in (("ReportFile", file), ("FederationFile", signed())):
        written = json.loads(render(one, "json"))
        assert set(defined[name]["properties"]) == set(written)
        assert set(defined[type(one.report).__name__]["properties"]) == set(written["report"])


def test_the_schemas_patterns_are_for_every_language() -> None:
    r"""Python knows no \p{Cc}, JavaScript no \u{202a} without a flag, and neither would have validated a report."""
    found = re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', SCHEMA.read_text(encoding="utf-8"))
    assert len(found) > 20
    for pattern in {json.loads(one) for one in found}:
        assert re.compile(pattern).search("\0") is None
        assert not re.search(r"\\[pP]|\\u\{|\(\?", pattern)


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "pdf"])
def test_every_format_says_it_all_and_always_the_same(file: ReportFile, form: str) -> None:
    text = render(file, form)
    assert text == render(file, form)
    assert "complian" not in text.lower()
    assert "r-2" in text or "r\\-2" in text
    if form != "csv":
        assert "59 times in 100" in text
