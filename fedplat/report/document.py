"""A report as it is read: page one, then headed tables, lists of text and plots. HTML, Markdown and PDF set it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedplat.report.drawing import Figure

Row = tuple[str, ...]
STATUS = ("pass", "fail", "declared")
"""Cells that say nothing but one of these are set off."""

WHOLE = 12
"""Tables of up to so many rows are not torn apart by the end of a page."""


@dataclass(frozen=True, slots=True)
class Table:
    """`head` empty: two columns, the first of which names the second."""

    head: Row
    rows: tuple[Row, ...]

    @property
    def is_form(self) -> bool:
        """Whether people fill it in by hand."""
        return bool(self.rows) and not self.head and not any(row[1] for row in self.rows)


@dataclass(frozen=True, slots=True)
class Chapter:
    """`items`: a list; comes after the text and before the tables. `verbatim`: set line by line, at the end."""

    title: str
    text: str = ""
    items: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    verbatim: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """`headlines`: what page one says first, set large. `data`: what the signature is over, as canonical JSON."""

    title: str
    description: str
    headlines: tuple[str, ...]
    lines: tuple[str, ...]
    alarms: tuple[str, ...]
    figures: tuple[Figure, ...]
    chapters: tuple[Chapter, ...]
    data: str = ""


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and what they name."""
    return Table((), tuple(rows))
