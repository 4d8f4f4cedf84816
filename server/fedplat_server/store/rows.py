"""Rows in and out: frozen records from rows, and the one upsert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, Table, and_, insert, update

Record = TypeVar("Record")


def first(connection: Connection, kind: type[Record], query: Select[Any]) -> Record | None:
    """The first row of `query` as a `kind`, whose fields are named like the columns."""
    row = connection.execute(query).first()
    return None if row is None else record(kind, row)


def one(connection: Connection, kind: type[Record], query: Select[Any]) -> Record:
    """The only row of `query`, which must be there, as a `kind`."""
    return record(kind, connection.execute(query).one())


def every(connection: Connection, kind: type[Record], query: Select[Any]) -> list[Record]:
    """Every row of `query`, each as a `kind`."""
    return [record(kind, row) for row in connection.execute(query)]


def record(kind: type[Record], row: Row[Any]) -> Record:
    """One row as a `kind`."""
    return kind(**row._mapping)


def upsert(
    connection: Connection,
    table: Table,
    key: Mapping[str, object],
    values: Mapping[str, object],
    *,
    defaults: Mapping[str, object] | None = None,
) -> None:
    """Set `values` in the row at `key`, made with `defaults` where there is none yet. In `write` only."""
    here = and_(*(table.c[name] == value for name, value in key.items()))
    if not connection.execute(update(table).where(here).values(**values)).rowcount:
        connection.execute(insert(table).values(**{**(defaults or {}), **values, **key}))
