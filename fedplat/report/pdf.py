"""A document as PDF: A4, the plots as vectors, page numbers. It is for reading; HTML and JSON can be verified."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape

from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    CondPageBreak,
    Flowable,
    HRFlowable,
    KeepTogether,
    Paragraph,
    Preformatted,
    SimpleDocTemplate,
    Spacer,
    TableStyle,
)
from reportlab.platypus import Table as Grid

from fedplat.report.document import STATUS, WHOLE, Chapter, Document, Table
from fedplat.report.pdfdrawing import Plot, plain

_MARGIN = 18 * mm
_PADDING = 6  # reportlab's frames have that
_WIDTH = A4[0] - 2 * (_MARGIN + _PADDING)
_WIDE = 5
_COLUMNS = 108
_BODY = ParagraphStyle("body", fontName="Helvetica", fontSize=9.5, leading=13.5, textColor=HexColor("#1c2430"))
_STYLES = {
    "title": ParagraphStyle("title", _BODY, fontName="Helvetica-Bold", fontSize=16, leading=20, spaceAfter=4),
    "from": ParagraphStyle("from", _BODY, textColor=HexColor("#555566"), spaceAfter=8),
    "odds": ParagraphStyle("odds", _BODY, fontSize=12, leading=16.5),
    "line": ParagraphStyle("line", _BODY, spaceAfter=4),
    "chapter": ParagraphStyle("chapter", _BODY, fontName="Helvetica-Bold", fontSize=12, leading=15, spaceAfter=4),
    "item": ParagraphStyle("item", _BODY, leftIndent=12, bulletIndent=2, spaceAfter=2),
    "cell": ParagraphStyle("cell", _BODY, fontSize=8.5, leading=11),
    "small": ParagraphStyle("small", _BODY, fontSize=7, leading=9),
    "verbatim": ParagraphStyle("verbatim", _BODY, fontName="Courier", fontSize=7.5, leading=9.5),
}
_COLOURS = {"pass": "#1d6b34", "fail": "#a3250f", "declared": "#6a5300"}


def as_pdf(document: Document) -> bytes:
    """The whole file; the same document always gives the same bytes."""
    num_pages = _build(document, io.BytesIO(), 0)  # a page says how many there are, so that none goes missing
    file = io.BytesIO()
    _build(document, file, num_pages)
    return file.getvalue()


def _build(document: Document, file: io.BytesIO, num_pages: int) -> int:
    """Writes the file and counts its pages."""
    pages = SimpleDocTemplate(
        file,
        pagesize=A4,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN,
        title=plain(document.title),
        author="fedplat",
        invariant=1,
    )
    footer = partial(_footer, title=plain(document.title), num_pages=num_pages)
    pages.build([*_front(document), *_chapters(document.chapters)], onFirstPage=footer, onLaterPages=footer)
    return int(pages.page)


def _front(document: Document) -> Iterator[Flowable]:
    yield _text(document.title, "title")
    yield _text(document.description, "from")
    if document.headlines:
        yield _panel(document.headlines, "odds", "#f2f6fb", "#1f5fa8")
    for line in document.lines:
        yield _text(line, "line")
    if document.alarms:
        yield _panel(document.alarms, "line", "#fdf1ee", "#a3250f")
    yield from map(Plot, document.figures)


def _chapters(chapters: Sequence[Chapter]) -> Iterator[Flowable]:
    for chapter in chapters:
        yield CondPageBreak(45 * mm)
        head: list[Flowable] = [
            Spacer(1, 5 * mm),
            HRFlowable(width="100%", thickness=0.6, color=HexColor("#d5dae1"), spaceAfter=4),
            _text(chapter.title, "chapter"),
        ]
        if chapter.text:
            head.append(_text(chapter.text, "line"))
        tables = [_grid(table) for table in chapter.tables if table.rows]
        if not chapter.items and not chapter.figures and sum(len(table.rows) for table in chapter.tables) <= WHOLE:
            head += tables
            tables = []
        yield KeepTogether(head)
        for item in chapter.items:
            yield Paragraph(escape(plain(item)), _STYLES["item"], bulletText="•")
        yield from map(Plot, chapter.figures)
        yield from tables
        if chapter.verbatim:
            yield Preformatted(plain(chapter.verbatim), _STYLES["verbatim"], maxLineLength=_COLUMNS)


def _panel(lines: Sequence[str], style: str, ground: str, edge: str) -> Flowable:
    panel = Grid([[_text(line, style)] for line in lines], colWidths=[_WIDTH], spaceBefore=4, spaceAfter=8)
    panel.setStyle(
        TableStyle(
            [
                ("BACKGROUND", (0, 0), (-1, -1), HexColor(ground)),
                ("LINEBEFORE", (0, 0), (0, -1), 4, HexColor(edge), "butt"),
                ("LEFTPADDING", (0, 0), (-1, -1), 12),
            ]
        )
    )
    return panel


def _grid(table: Table) -> Flowable:
    style = "small" if len(table.head) > _WIDE else "cell"
    head = [[_cell(f"<b>{_marked(cell)}</b>", style) for cell in table.head]] if table.head else []
    rows = [[_cell(_first(row[0]), style), *(_cell(_marked(cell), style) for cell in row[1:])] for row in table.rows]
    grid = Grid([*head, *rows], colWidths=_widths(table), repeatRows=len(head), hAlign="LEFT", spaceAfter=8)
    grid.setStyle(
        TableStyle(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LINEBELOW", (0, 0), (-1, -1), 0.5, HexColor("#e4e8ed")),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("RIGHTPADDING", (0, 0), (-1, -1), 6),
                ("TOPPADDING", (0, 0), (-1, -1), 3),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 14 if table.is_form else 3),
            ]
        )
    )
    return grid


def _widths(table: Table) -> list[float]:
    """By how much there is in a column; names beside what they name take a third."""
    if not table.head:
        return [_WIDTH * 0.33, _WIDTH * 0.67]
    rows = [table.head, *table.rows]
    longest = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    words = [max(len(word) for row in rows for word in row[i].split() or [""]) for i in range(len(table.head))]
    least = [min(word, 16) + 2 for word in words]
    wish = [max(low, min(long, 80) ** 0.85) for low, long in zip(least, longest, strict=True)]
    return [_WIDTH * one / sum(wish) for one in wish]


def _first(text: str) -> str:
    return _marked(text) if text in STATUS else f"<b>{_marked(text)}</b>"


def _marked(text: str) -> str:
    if text in STATUS:
        return f'<font color="{_COLOURS[text]}"><b>{text}</b></font>'
    return escape(plain(text))


def _cell(markup: str, style: str) -> Paragraph:
    return Paragraph(markup, ParagraphStyle("wrapped", _STYLES[style], splitLongWords=1, wordWrap="LTR"))


def _text(text: str, style: str) -> Paragraph:
    return Paragraph(escape(plain(text)), _STYLES[style])


def _footer(canvas: Canvas, pages: SimpleDocTemplate, title: str, num_pages: int) -> None:
    canvas.saveState()
    canvas.setFont("Helvetica", 7.5)
    canvas.setFillColor(HexColor("#7a8494"))
    shown = title if len(title) <= 100 else f"{title[:99]}…"
    canvas.drawString(_MARGIN + _PADDING, 10 * mm, shown)
    canvas.drawRightString(A4[0] - _MARGIN - _PADDING, 10 * mm, f"page {pages.page} of {num_pages}")
    canvas.restoreState()
