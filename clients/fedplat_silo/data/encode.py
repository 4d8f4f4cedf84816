"""Text cells to numbers, by the schema of the tabular task."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedplat.reasons import Code, Reason
from fedplat.spec.tabular import Categorical, Numeric, Target
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.tables import Table, is_missing

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def numbers(table: Table, feature: Numeric) -> Floats:
    """The column in its own unit; NaN where `missing = "center"` applies."""
    fill = math.nan if feature.missing == "center" else feature.missing
    return _floats(table, feature.column, fill if isinstance(fill, float) else None)


def one_hot(table: Table, feature: Categorical) -> Floats:
    """One column a category (n x C, or C - 1 with `drop_first`); a missing value sets none where `zeros` applies."""
    codes = _codes(table, feature.column, feature.categories, Code.CATEGORY_UNKNOWN, feature.missing == "zeros")
    hot = np.zeros((len(codes), len(feature.categories)))
    known = codes >= 0
    hot[known, codes[known]] = 1
    return hot[:, 1:] if feature.drop_first else hot


def classes(table: Table, target: Target) -> Integers:
    """The index of each record's class."""
    return _codes(table, target.column, target.categories, Code.TARGET_UNKNOWN, may_miss=False)


def values(table: Table, target: Target) -> Floats:
    """A regression target, in its own unit."""
    return _floats(table, target.column, None)


def _floats(table: Table, column: str, fill: float | None) -> Floats:
    result = np.empty(len(table))
    for row, cell in enumerate(table.cells[column]):
        if not is_missing(cell):
            result[row] = _number(table, column, row, cell)
        elif fill is None:
            raise _missing(table, column, row)
        else:
            result[row] = fill
    return result


def _number(table: Table, column: str, row: int, cell: str) -> float:
    number = _parse(cell)
    if number is None:
        reason = Reason.of(Code.NUMBER_INVALID, column=column)
        raise Refused(reason, f"{table.at(row)}: column {column!r} holds {cell!r}, not a finite number")
    return number


def _parse(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def _codes(table: Table, column: str, categories: tuple[str, ...], unknown: Code, may_miss: bool) -> Integers:
    places = {category: place for place, category in enumerate(categories)}
    result = np.empty(len(table), dtype=np.int64)
    for row, cell in enumerate(table.cells[column]):
        place = places.get(cell)
        if place is None:
            place = places.get(_integral(cell))
        if place is None and is_missing(cell):
            if not may_miss:
                raise _missing(table, column, row)
            place = -1
        if place is None:
            detail = f"{table.at(row)}: column {column!r} holds {cell!r}, the schema has {list(categories)}"
            raise Refused(Reason.of(unknown, column=column), detail)
        result[row] = place
    return result


def _integral(cell: str) -> str:
    """`1` for `1.0`: that is how an integer column with gaps is commonly exported."""
    number = _parse(cell)
    return str(int(number)) if number is not None and number.is_integer() else cell


def _missing(table: Table, column: str, row: int) -> Refused:
    return Refused(Reason.of(Code.VALUE_MISSING, column=column), f"{table.at(row)}: column {column!r} is empty")
