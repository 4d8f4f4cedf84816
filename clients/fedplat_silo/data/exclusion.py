"""`exclude.csv`: patients who opted out. Their records take no part, in training nor in tests.

The header is the name of the column that holds the ids, as it is in the data; then one id a line.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from fedplat.errors import DataError
from fedplat.home import SiloHome
from fedplat.reasons import Code, Reason
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.tables import Table, read_table

FILE = "exclude.csv"
_HINT = "Its first line names the column with the patients' ids, each other line holds one id."


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Whose records are left out: those with one of `ids` in `column`. Nobody, if there are no ids."""

    column: str | None = None
    ids: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Exclusion(column={self.column!r}, {len(self.ids)} ids)"


def exclusion_file(home: SiloHome) -> Path:
    """Where the silo's list is."""
    return home.path / FILE


def read_exclusion(path: Path) -> Exclusion:
    """The list; empty if there is no file. Raises DataError if it cannot be read: then nobody may be trained on."""
    if not path.exists():
        return Exclusion()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}", hint=_HINT) from None
    if not rows or any(len(row) != 1 for row in rows) or not rows[0][0].strip():
        raise DataError(f"{path} is not a list of patients", hint=_HINT)
    ids = frozenset(row[0].strip() for row in rows[1:]) - {""}
    return Exclusion(rows[0][0].strip(), ids) if ids else Exclusion()


def read_kept(path: Path, columns: tuple[str, ...], dataset: str, exclusion: Exclusion) -> Table:
    """`read_table`, without the records of those who opted out. Refused (COLUMN_MISSING) if they cannot be told."""
    if exclusion.column is None:
        return read_table(path, columns, dataset)
    wanted = columns if exclusion.column in columns else (*columns, exclusion.column)
    try:
        table = read_table(path, wanted, dataset)
    except Refused as error:
        if error.reason.words.get("column") != exclusion.column or exclusion.column in columns:
            raise
        # The column's name is from the silo's own list: it does not leave.
        reason = Reason.of(Code.DATASET_UNREADABLE, dataset=dataset)
        detail = f"{path} has no column {exclusion.column!r}, by which {FILE} excludes patients"
        raise Refused(reason, detail) from None
    kept = table.take([row for row, cell in enumerate(table.cells[exclusion.column]) if cell not in exclusion.ids])
    return Table(kept.path, {column: kept.cells[column] for column in columns}, kept.lines)
