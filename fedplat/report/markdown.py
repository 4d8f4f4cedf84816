"""A document as Markdown."""

from __future__ import annotations

import re

from fedplat.report.document import Chapter, Document, Row, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+|!&~])")


def as_markdown(document: Document) -> str:
    """For reading, without plots; the file that can be verified is HTML or JSON."""
    summary = map(_escape, (document.description, *document.headlines, *document.lines, *document.alarms))
    first = [f"# {_escape(document.title)}", *summary]
    return "\n\n".join([*first, *(part for chapter in document.chapters for part in _chapter(chapter))]) + "\n"


def _chapter(chapter: Chapter) -> list[str]:
    parts = [f"## {_escape(chapter.title)}"]
    if chapter.text:
        parts.append(_escape(chapter.text))
    if chapter.items:
        parts.append("\n".join(f"- {_escape(item)}" for item in chapter.items))
    parts += [_table(table) for table in chapter.tables]
    return parts + ([_indented(chapter.verbatim)] if chapter.verbatim else [])


def _table(table: Table) -> str:
    width = len(table.rows[0]) if table.rows else len(table.head)
    head = table.head or ("",) * width
    return "\n".join([_row(head), "|" + "---|" * width, *map(_row, table.rows)])


def _row(cells: Row) -> str:
    return "| " + " | ".join(_escape(cell) for cell in cells) + " |"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
