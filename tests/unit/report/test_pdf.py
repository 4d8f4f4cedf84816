"""The PDF is for reading: everything is in it, the plots as vectors, on pages of A4."""

from __future__ import annotations

import re
import sys
import zlib
from base64 import a85decode

import pytest

import fedplat.report
from fedplat.errors import NotFoundError
from fedplat.report import ReportFile, written
from fedplat.report.document import Chapter, Document, Table
from fedplat.report.drawing import Segment, Words
from fedplat.report.pdf import as_pdf
from fedplat.report.plots import bar, bar_plot
from tests.unit.report.federation_scene import signed


def streams(pdf: bytes) -> str:
    """What is drawn on the pages, as PDF operators."""
    found = re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL)
    return "\n".join(zlib.decompress(a85decode(one.strip(), adobe=False)).decode("latin-1") for one in map(cut, found))


def cut(stream: bytes) -> bytes:
    return stream.strip().removesuffix(b"~>")


def words(pdf: bytes) -> str:
    """The text alone, pieces joined; escapes of brackets undone."""
    pieces = re.findall(r"\(((?:\\.|[^\\()])*)\) Tj", streams(pdf))
    return re.sub(r"\s+", " ", " ".join(re.sub(r"\\([()\\])", r"\1", piece) for piece in pieces))


def test_both_reports_are_whole_and_always_the_same(file: ReportFile) -> None:
    for one, name in ((file, "hospital-a"), (signed(), "hospital-c")):
        pdf = written(one, "pdf")
        assert pdf == written(one, "pdf")
        assert pdf.startswith(b"%PDF-1")
        text = words(pdf)
        for told in (
            name,
            "59 times in 100",
            "What is not protected",
            "smokers",
            "What the figures rest on",
            "Epsilon",
            "A PDF or a print cannot be checked",
        ):
            assert told in text, told
        pages = re.findall(r"page (\d+) of (\d+)", text)
        assert pages == [(str(number), str(len(pages))) for number in range(1, len(pages) + 1)]
        assert one.signature is not None
        assert one.signature.fingerprint[:40] in text.replace(" ", "")
        assert b"/Subtype /Image" not in pdf
        assert b"595.2756 841.8898" in pdf


def test_no_letter_and_no_markup_breaks_it() -> None:
    long = "x" * 400
    table = Table(("a", "b"), (("<b>&", "Łódź 医院 \N{BULLET}"), (long, long)))
    chapters = (Chapter("</para>", text="<i>", items=("(unbalanced",), tables=(table,), verbatim='{\n  "a": 1\n}'),)
    text = words(as_pdf(Document("Ärzte & Co", "", ("h",), (), (), (), chapters))).replace(" ", "")
    for told in ("</para>", "<i>", "(unbalanced", "<b>&", r"?\363dz??", '"a":1'):
        assert told in text, told


def test_a_long_table_goes_on_over_pages() -> None:
    rows = tuple((f"row {number}", "v") for number in range(200))
    pdf = as_pdf(Document("t", "d", (), (), (), (), (Chapter("c", tables=(Table(("Name", "What"), rows),)),)))
    assert words(pdf).count("Name") >= 4
    assert "row 199" in words(pdf)


def test_a_plot_with_many_bars_stays_on_its_page() -> None:
    names = [f"university-hospital-{number:02d}" for number in range(60)]
    tall = bar_plot("t", "epsilon", [bar(name, 1.0, "main") for name in names], 1.02)
    assert "spital-59" in words(as_pdf(Document("t", "d", (), (), (), (tall,), ())))
    shown = [one.text for one in tall.shapes if isinstance(one, Words)]
    assert {"universit…spital-00", "universit…spital-59"} <= set(shown)
    line = next(one for one in tall.shapes if isinstance(one, Segment) and one.style == "limit")
    numbers = [one for one in tall.shapes if isinstance(one, Words) and one.text == "1.000"]
    assert all(one.x > line.x1 for one in numbers)


def test_where_reportlab_is_not_installed_the_error_says_what_to_do(
    file: ReportFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fedplat.report.pdf")
    monkeypatch.delattr(fedplat.report, "pdf")
    for name in [name for name in sys.modules if name.split(".")[0] == "reportlab"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotFoundError, match="reportlab") as raised:
        written(file, "pdf")
    assert "pip install 'fedplat[pdf]'" in raised.value.hint
