"""The event list as CSV: from it anybody can compute the figures again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from fedplat.ledger import Events
from fedplat.report.model import ReportFile

_HEADER = ("kind", "at", "run", "round", "attempt", "sampling_rate", "noise_multiplier", "num_steps")
Row = tuple[object, ...]


def as_csv(file: ReportFile) -> str:
    """One row an event: `released`, `lost` (charged for lost entries), `may_still_spend`; `bare` without noise."""
    return csv_text(_HEADER, _rows(file))


def csv_text(header: Sequence[str], rows: Iterable[Row]) -> str:
    """The table, with nothing in it that a spreadsheet would compute."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(tuple(map(_inert, row)) for row in rows)
    return text.getvalue()


def _rows(file: ReportFile) -> Iterator[Row]:
    accounting = file.report.accounting
    for one in accounting.releases:
        where = (one.at.isoformat(), one.run, one.round, one.attempt)
        yield from _events("released", where, one.events) if one.events else iter([("bare", *where, "", "", "")])
    yield from _events("lost", ("", "", "", ""), accounting.lost_entries)
    for run in accounting.runs:
        yield from _events("may_still_spend", ("", run.run, "", ""), run.may_still_spend)


def _events(kind: str, where: Row, events: Events) -> Iterator[Row]:
    return ((kind, *where, event.sampling_rate, event.noise_multiplier, event.num_steps) for event in events)


def _inert(cell: object) -> object:
    """A spreadsheet takes text that begins like a formula for one."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
