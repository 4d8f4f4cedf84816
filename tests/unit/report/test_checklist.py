"""docs/nist-800-226.md sends officers to chapters of the report: they are there, under these names."""

from __future__ import annotations

import re
from pathlib import Path

from fedplat.report import ReportFile
from fedplat.report.rendering import document_of
from tests.unit.report.federation_scene import signed

CHECKLIST = Path(__file__).resolve().parents[3] / "docs" / "nist-800-226.md"


def test_every_chapter_that_it_names_is_in_a_report_and_the_other_way_round(file: ReportFile) -> None:
    named = set(re.findall(r"\*\*([^*]+)\*\*", CHECKLIST.read_text(encoding="utf-8")))
    chapters = {chapter.title for one in (file, signed()) for chapter in document_of(one).chapters}
    assert named == chapters | {"Page one"}
