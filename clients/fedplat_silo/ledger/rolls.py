"""Which keyed hashes belong to which version of a dataset: only what came or went is written with each version."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection, Iterable, Sequence

Change = tuple[bytes, bool]
"""A hash, and whether it is present from now on."""


def current(connection: sqlite3.Connection, versions: Iterable[int]) -> set[bytes]:
    """The hashes that are present after these versions of one dataset, oldest first."""
    present: set[bytes] = set()
    for version in versions:
        for one, is_present in connection.execute("SELECT id, present FROM members WHERE seq = ?", (version,)):
            present.add(one) if is_present else present.discard(one)
    return present


def changes(before: set[bytes], after: Collection[bytes]) -> list[Change]:
    """What came and went, sorted."""
    wanted = set(after)
    return sorted([(one, True) for one in wanted - before] + [(one, False) for one in before - wanted])


def digest(found: Iterable[Change]) -> str:
    """One digest for sorted changes, hex."""
    return hashlib.sha256(b"".join(one + bytes([present]) for one, present in found)).hexdigest()


def digest_of(connection: sqlite3.Connection, seq: int) -> str:
    """The digest of the changes that an entry has in the file."""
    rows = connection.execute("SELECT id, present FROM members WHERE seq = ? ORDER BY id", (seq,))
    return digest((bytes(one), bool(present)) for one, present in rows)


def overlapping(connection: sqlite3.Connection, ids: Collection[bytes]) -> set[int]:
    """The entries in which any of these hashes ever came."""
    connection.execute("CREATE TEMP TABLE roll (id BLOB PRIMARY KEY) WITHOUT ROWID")
    connection.executemany("INSERT INTO temp.roll VALUES (?)", ((one,) for one in ids))
    found = connection.execute("SELECT DISTINCT seq FROM members JOIN temp.roll USING (id)")
    return {seq for (seq,) in found}


def is_present(connection: sqlite3.Connection, one: bytes, versions: Sequence[int]) -> bool:
    """Whether a hash is present after these versions of one dataset."""
    query = "SELECT present FROM members WHERE id = ? AND seq = ?"
    rows = (connection.execute(query, (one, version)).fetchone() for version in reversed(versions))
    last = next((row for row in rows if row), None)
    return bool(last and last[0])
