"""The report as Markdown."""

from __future__ import annotations

import re

from fedplat.report.facts import Chapter, Row, Table, chapters, title
from fedplat.report.model import ReportFile

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+|!&~])")


def as_markdown(file: ReportFile) -> str:
    """For reading; the file that can be verified is HTML or JSON."""
    first = [f"# {_escape(title(file.report))}", *map(_escape, file.report.summary)]
    return "\n\n".join([*first, *(part for chapter in chapters(file) for part in _chapter(chapter))]) + "\n"


def _chapter(chapter: Chapter) -> list[str]:
    parts = [f"## {_escape(chapter.title)}"]
    if chapter.text:
        parts.append(_escape(chapter.text))
    if chapter.items:
        parts.append("\n".join(f"- {_escape(item)}" for item in chapter.items))
    return parts + [_table(table) for table in chapter.tables]


def _table(table: Table) -> str:
    width = len(table.rows[0]) if table.rows else len(table.head)
    head = table.head or ("",) * width
    return "\n".join([_row(head), "|" + "---|" * width, *map(_row, table.rows)])


def _row(cells: Row) -> str:
    return "| " + " | ".join(_escape(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
