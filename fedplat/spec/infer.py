"""A first guess at a table's schema, from one CSV file read once, row by row.

The guess is for a person to correct: what it says about the data becomes public with the spec.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedplat.errors import DataError, SpecError
from fedplat.spec.tabular import MISSING_CELLS

MAX_CATEGORIES = 50
MAX_CODES = 10  # so few whole numbers may be codes for something
MAX_SEEN = 1000  # so many different texts and no repetition: an identifier
MAX_NUMBER = 1e100  # no measurement is larger, and squares of it stay finite
TARGET_NAMES = ("target", "label", "class", "diagnosis", "outcome", "y")

_PERSON = r"(patient|subject|person|participant|mrn|nhs|ssn)"
_ID_NAME = re.compile(rf"id|uid|uuid|.*_id|{_PERSON}(_?(id|no|nr|num|number|key|code))?")


@dataclass
class Column:
    """What one pass over a column has shown. Missing cells count only as `missing`."""

    name: str
    numeric: bool = True
    whole: bool = True
    missing: bool = False
    repeats: bool = False
    num_values: int = 0
    mean: float = 0.0
    squares: float = 0.0
    seen: set[str] = field(default_factory=set)

    def add(self, cell: str) -> None:
        """Takes one more cell into account."""
        text = cell.strip()
        if text.casefold() in MISSING_CELLS:
            self.missing = True
            return
        self.num_values += 1
        self.repeats |= text in self.seen
        if len(self.seen) <= MAX_SEEN:
            self.seen.add(text)
        number = parse_number(text) if self.numeric else None
        if number is None:
            self.numeric = False
            return
        self.whole &= number.is_integer()
        step = number - self.mean  # Welford 1962: one pass, no cancellation
        self.mean += step / self.num_values
        self.squares += step * (number - self.mean)

    @property
    def center(self) -> float:
        """The mean, to two significant digits."""
        return _round(self.mean)

    @property
    def scale(self) -> float:
        """The standard deviation, to two significant digits; 1 for a constant column."""
        return _round(math.sqrt(self.squares / max(self.num_values, 1))) or 1.0

    @property
    def categories(self) -> tuple[str, ...]:
        """The different values in order, or none if there are too many, or they are too long, to list."""
        if len(self.seen) > MAX_CATEGORIES or max(map(len, self.seen), default=0) > 200:
            return ()
        return tuple(sorted(self.seen, key=float if self.numeric else None))

    @property
    def few_codes(self) -> bool:
        """Whether the numbers are so few and whole that they may stand for categories."""
        return self.numeric and self.whole and 2 <= len(self.seen) <= MAX_CODES

    @property
    def is_key(self) -> bool:
        """Whether it names records rather than describing them."""
        texts = not self.numeric and not self.repeats and self.num_values > 2
        return texts or _ID_NAME.fullmatch(_plain(self.name)) is not None


@dataclass(frozen=True)
class Table:
    """A table by the roles of its columns. `unused`: why a column is neither feature nor key."""

    name: str
    target: Column
    features: tuple[Column, ...]
    keys: tuple[Column, ...] = ()
    unused: tuple[tuple[str, str], ...] = ()

    @property
    def patient(self) -> Column | None:
        """The key that most likely names patients, by its name alone."""
        named = [c for c in self.keys if _ID_NAME.fullmatch(_plain(c.name))]
        return min(named, key=lambda c: not re.match(_PERSON, _plain(c.name)), default=None)


def infer_table(path: Path, *, target: str | None = None) -> Table:
    """The schema that a CSV file suggests. DataError if it is not a usable table, SpecError if it has no `target`."""
    columns = _read(path)
    chosen = _find_target(columns, target, path)
    if len(chosen.seen) < 2 or not (chosen.numeric or chosen.categories):
        raise DataError(
            f"{path}: {chosen.name!r} cannot be the target: it holds neither numbers nor 2 to {MAX_CATEGORIES} classes",
            hint="name the column to predict with --target",
        )
    others = [c for c in columns if c is not chosen]
    reasons = {c.name: _why_unused(c) for c in others if not c.is_key}
    features = tuple(c for c in others if reasons.get(c.name) == "")
    if not features:
        raise DataError(f"{path}: no column can be used as a feature", hint="are the cells separated by commas?")
    unused = tuple((name, why) for name, why in reasons.items() if why)
    return Table(legal_name(path.stem), chosen, features, tuple(c for c in others if c.is_key), unused)


def legal_name(text: str) -> str:
    """`text` with what a name may not hold replaced by `-`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")[:63] or "data"


def parse_number(text: str) -> float | None:
    """A finite number of a size that measurements have, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) <= MAX_NUMBER and "_" not in text else None


def _read(path: Path) -> list[Column]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            columns = _header(path, [name.strip() for name in next(rows, [])])
            for cells in _records(path, rows, len(columns)):
                for column, cell in zip(columns, cells, strict=True):
                    column.add(cell)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="--data names a CSV file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text", hint="save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}", hint="save it as plain CSV") from None
    if not any(c.num_values or c.missing for c in columns):
        raise DataError(f"{path} has a header and no records", hint="give a file with some records")
    return columns


def _records(path: Path, rows: Iterator[list[str]], num_columns: int) -> Iterator[list[str]]:
    for number, cells in enumerate(rows, start=1):
        if cells and len(cells) != num_columns:
            raise DataError(
                f"{path}: record {number} has {len(cells)} cells, but the header has {num_columns}",
                hint="cells that hold commas need quotes",
            )
        if cells:
            yield cells


def _header(path: Path, names: list[str]) -> list[Column]:
    if not names:
        raise DataError(f"{path} has no header", hint="the first line must name the columns")
    if sum(parse_number(name) is not None for name in names) * 2 > len(names):
        raise DataError(f"{path} has no header: its first line holds numbers", hint="name the columns in line 1")
    if len(names) == 1:
        raise DataError(f"{path} has only one column", hint="are the cells separated by commas?")
    for position, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"{path}: column {position} has no name", hint="name every column in the header")
        if name in names[: position - 1]:
            raise DataError(f"{path}: two columns are called {name!r}", hint="give each column a name of its own")
    return [Column(name) for name in names]


def _find_target(columns: list[Column], wanted: str | None, path: Path) -> Column:
    by_name = {c.name: c for c in columns}
    if wanted is not None:
        if wanted not in by_name:
            near = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.0)[0]
            raise SpecError(f"{path} has no column {wanted!r}", hint=f"did you mean {near!r}?")
        return by_name[wanted]
    by_plain = {_plain(c.name): c for c in reversed(columns)}
    return next((by_plain[name] for name in TARGET_NAMES if name in by_plain), columns[-1])


def _why_unused(column: Column) -> str:
    if not column.num_values:
        return "it is empty in this file"
    if column.numeric:
        return ""
    if len(column.seen) == 1:
        return "it has a single value in this file"
    return "" if column.categories else f"it holds more than {MAX_CATEGORIES} different texts, or long ones"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")


def _round(number: float) -> float:
    return float(f"{number:.2g}") + 0.0  # + 0.0: no negative zero
