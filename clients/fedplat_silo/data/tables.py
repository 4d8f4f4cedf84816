"""Tables from CSV and Parquet files as columns of text cells, each cell with the line that it came from."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedplat.reasons import Code, Reason
from fedplat_silo.data.errors import Refused

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null"})


@dataclass(frozen=True)
class Table:
    """Some columns of a file: `cells[column][i]` is stripped text, `lines[i]` where record i ends in the file."""

    path: Path
    cells: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def at(self, row: int) -> str:
        """Where a record is, for the silo's own log."""
        return f"{self.path}:{self.lines[row]}"

    def take(self, rows: list[int]) -> Table:
        """These rows, in this order."""
        cells = {column: [values[row] for row in rows] for column, values in self.cells.items()}
        return Table(self.path, cells, [self.lines[row] for row in rows])


def is_missing(cell: str) -> bool:
    """Whether a cell stands for no value: empty, ?, NA, N/A, NaN, null."""
    return cell.casefold() in MISSING


def read_table(path: Path, columns: tuple[str, ...], dataset: str) -> Table:
    """The named columns of a .csv or .parquet file.

    Refused with COLUMN_MISSING, or with DATASET_UNREADABLE for anything else that is wrong with the file.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise unreadable(dataset, f"{path} is neither .csv nor .parquet")
    try:
        return reader(path, columns)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise unreadable(dataset, f"{path}: {error}") from error


def unreadable(dataset: str, detail: str) -> Refused:
    """DATASET_UNREADABLE, with a detail for the silo's log."""
    return Refused(Reason.of(Code.DATASET_UNREADABLE, dataset=dataset), detail)


def _read_csv(path: Path, columns: tuple[str, ...]) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        places = _places(path, header, columns)
        lines: list[int] = []
        cells: dict[str, list[str]] = {column: [] for column in columns}
        for row in _rows(reader, len(header)):
            lines.append(reader.line_num)
            for column, place in places.items():
                cells[column].append(row[place].strip())
    return Table(path, cells, lines)


def _rows(reader: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    for number, row in enumerate(reader, start=1):
        if not row:
            continue
        if len(row) != width:
            raise ValueError(f"record {number} has {len(row)} cells, the header {width}")
        yield row


def _places(path: Path, header: list[str], columns: tuple[str, ...]) -> dict[str, int]:
    for column in columns:
        if column not in header:
            raise Refused(Reason.of(Code.COLUMN_MISSING, column=column), f"{path} has the columns {header}")
        if header.count(column) > 1:
            raise ValueError(f"two columns are called {column!r}")
    return {column: header.index(column) for column in columns}


def _read_parquet(path: Path, columns: tuple[str, ...]) -> Table:
    import pyarrow.parquet as pq  # here, because CSV users need not wait for it

    with pq.ParquetFile(path) as file:
        _places(path, file.schema_arrow.names, columns)
        table = file.read(columns=list(columns))
    cells = {column: [_text(value) for value in table.column(column).to_pylist()] for column in columns}
    return Table(path, cells, list(range(1, table.num_rows + 1)))


def _text(value: object) -> str:
    if value is None or value != value:  # NaN is what differs from itself
        return ""
    return str(value).strip()
