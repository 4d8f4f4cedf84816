"""A document as one HTML file: style and plots inside, no scripts, nothing from elsewhere, everything escaped.

The data that a signature is over are inside as well, so that the file can be verified: by them, and by writing it anew.
"""

from __future__ import annotations

from html import escape, unescape

from fedplat.errors import WireError
from fedplat.report.document import STATUS, WHOLE, Chapter, Document, Row, Table
from fedplat.report.style import STYLE
from fedplat.report.svg import as_svg

_OPEN, _CLOSE = '<pre id="report">', "</pre>"
_LONG = 24


def as_html(document: Document) -> str:
    """The whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_front(document)}\n{''.join(map(_chapter, document.chapters))}{_data(document.data)}"
        "</main>\n</body>\n</html>\n"
    )


def data_inside(text: str) -> str:
    """The report inside an HTML file, as JSON. Raises WireError."""
    start = text.find(_OPEN)
    end = text.find(_CLOSE, start)
    if start < 0 or end < 0:
        raise WireError(
            "there is no privacy report inside this HTML file, or it was cut off",
            hint="Ask whoever made it for the file again. The report on how a run went is not signed.",
        )
    return unescape(text[start + len(_OPEN) : end])


def _data(data: str) -> str:
    if not data:
        return ""
    return (
        "<details><summary>The same report as data, which the signature is over</summary>\n"
        f"{_OPEN}{escape(data)}{_CLOSE}\n</details>\n"
    )


def _front(document: Document) -> str:
    return (
        f'<section class="front"><h1>{escape(document.title)}</h1><p class="from">{escape(document.description)}</p>'
        + (f'<div class="odds">{_paragraphs(document.headlines)}</div>' if document.headlines else "")
        + _paragraphs(document.lines)
        + (f'<div class="attention">{_paragraphs(document.alarms)}</div>' if document.alarms else "")
        + f"{''.join(map(as_svg, document.figures))}</section>"
    )


def _paragraphs(lines: tuple[str, ...]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _chapter(chapter: Chapter) -> str:
    items = "".join(f"<li>{escape(item)}</li>" for item in chapter.items)
    return (
        f"<h2>{escape(chapter.title)}</h2>\n"
        + (f"<p>{escape(chapter.text)}</p>\n" if chapter.text else "")
        + (f"<ul>{items}</ul>\n" if items else "")
        + "".join(map(as_svg, chapter.figures))
        + "".join(map(_table, chapter.tables))
        + (f"<pre>{escape(chapter.verbatim)}</pre>\n" if chapter.verbatim else "")
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "".join(f"<tr>{_cells(row)}</tr>\n" for row in table.rows)
    kind = "pairs hand" if table.is_form else "wide" if len(table.head) > 5 else "" if table.head else "pairs"
    whole = " whole" if len(table.rows) <= WHOLE else ""
    return (
        f'<table class="{kind}{whole}">'
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{rows}</tbody></table>\n"
    )


def _cells(row: Row) -> str:
    first, *others = row
    name = ' class="name"' if len(first) <= _LONG else ""
    return f'<th scope="row"{name}>{_cell(first)}</th>' + "".join(
        f"<td{_kind(one)}>{_cell(one)}</td>" for one in others
    )


def _kind(text: str) -> str:
    """Cells with something as long as a hash may break anywhere, others between words."""
    return ' class="long"' if any(len(word) > _LONG for word in text.split()) else ""


def _cell(text: str) -> str:
    return f'<span class="{text}">{text}</span>' if text in STATUS else escape(text)
