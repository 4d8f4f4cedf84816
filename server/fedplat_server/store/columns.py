"""Column types that read back the same from SQLite and PostgreSQL."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Float, String, Text
from sqlalchemy.types import TypeDecorator

from fedplat.canonical import canonical_json


def utc_now() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


def finite(value: object) -> object:
    """`value` with every NaN and infinity in it replaced by None: JSON and SQL have no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored and read in UTC; a naive one is refused, for it has no meaning."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a datetime without a time zone cannot be stored")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        # SQLite stores no offset and reads back naive; PostgreSQL answers in the session's time zone.
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value and value.astimezone(UTC)


class Json(TypeDecorator[Any]):
    """Canonical JSON text; NaN and infinities become null."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        return None if value is None else canonical_json(finite(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        return None if value is None else json.loads(value)


class Uint64(TypeDecorator[int]):
    """An unsigned 64-bit id, stored as decimal text: both databases' integers are signed."""

    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


class Finite(TypeDecorator[float]):
    """A float; NaN and infinities become NULL."""

    impl = Float(53)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        return value if value is not None and math.isfinite(value) else None
