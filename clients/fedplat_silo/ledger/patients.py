"""Who is in a dataset, as keyed hashes: they tell whether two datasets share patients, and nothing to anyone else.

Each patient gives a hash (where the dataset has a patient column) and so does each whole record, so that a dataset
without such a column, or with another name for it, is known again as well. The key never leaves the silo.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from fedplat.durable import sha256_file, write_atomic
from fedplat.errors import DataError, NotFoundError
from fedplat.identity.keys import read_private
from fedplat_silo.data.tables import Table, is_missing, read_table
from fedplat_silo.ledger.errors import BookDamaged

ID_BYTES = 16
_KEY_BYTES = 32
_TABLES = frozenset({".csv", ".parquet"})


class PatientKey:
    """The silo's key for patients' hashes, in a file that only its owner can read."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def load(cls, path: Path) -> PatientKey:
        """Raises BookDamaged if it is gone, IdentityError if it is open to other users."""
        try:
            secret = read_private(path)
        except NotFoundError:
            secret = b""
        if len(secret) != _KEY_BYTES:
            raise BookDamaged(
                f"{path}, the key to the patients in the privacy ledger, is gone or damaged",
                hint="Restore it from the silo's backup: without it, old and new patients cannot be compared.",
            )
        return cls(secret)

    @classmethod
    def create(cls, path: Path) -> PatientKey:
        """A new key, or the one that is there."""
        if not path.exists():
            write_atomic(path, secrets.token_bytes(_KEY_BYTES))
        return cls.load(path)

    @property
    def check(self) -> str:
        """A hash by which a book knows its key."""
        return self._hash("check", "").hex()

    def patient(self, name: str) -> bytes:
        """The hash of a patient id."""
        return self._hash("patient", name.strip())[:ID_BYTES]

    def record(self, text: str) -> bytes:
        """The hash of a whole record."""
        return self._hash("record", text)[:ID_BYTES]

    def _hash(self, use: str, text: str) -> bytes:
        return hmac.digest(self._secret, f"fedplat/1/{use}:{text}".encode("utf-8", "surrogatepass"), "sha256")


@dataclass(frozen=True, slots=True)
class Roll:
    """Everyone in a dataset. `ids`: hashes of patients and of records; `num_patients`: None without patient column."""

    ids: frozenset[bytes]
    num_records: int
    patient_column: str | None
    num_patients: int | None

    @property
    def content(self) -> str:
        """One digest for the whole roll, hex."""
        return hashlib.sha256(b"".join(sorted(self.ids))).hexdigest()


def call_the_roll(path: Path, dataset: str, patient_column: str | None, key: PatientKey) -> Roll:
    """Reads the whole dataset: a table, a folder with tables, else a file or folder whose files are the records.

    Raises DataError (Refused) where it cannot be read, or lacks the patient column.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    tables = [_read_whole(file, dataset) for file in files if file.suffix.lower() in _TABLES]
    if not tables:
        if patient_column is not None:
            raise DataError(
                f"dataset {dataset} has no table, so no column {patient_column!r}", hint="Leave --patient away."
            )
        return Roll(frozenset(key.record(sha256_file(file)) for file in files), len(files), None, None)
    records = {one for table in tables for one in _records(table, key)}
    names = {cell for table in tables for cell in _patients(table, dataset, patient_column)}
    return Roll(
        ids=frozenset(records | {key.patient(name) for name in names}),
        num_records=sum(map(len, tables)),
        patient_column=patient_column,
        num_patients=len(names) if patient_column is not None else None,
    )


def _read_whole(file: Path, dataset: str) -> Table:
    return read_table(file, tuple(dict.fromkeys(_header(file))), dataset)


def _header(file: Path) -> list[str]:
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq  # here, because CSV users need not wait for it

        try:
            return [str(name) for name in pq.read_schema(file).names]
        except (OSError, ValueError):
            return []
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return [name.strip() for name in next(csv.reader(lines), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []  # `read_table` says what is wrong


def _records(table: Table, key: PatientKey) -> list[bytes]:
    columns = sorted(table.cells)
    names = json.dumps(columns)
    rows = zip(*(table.cells[column] for column in columns), strict=True)
    return [key.record(names + json.dumps(row)) for row in rows]


def _patients(table: Table, dataset: str, column: str | None) -> list[str]:
    if column is None:
        return []
    if column not in table.cells:
        raise DataError(
            f"dataset {dataset} has no column {column!r}, which is to name its patients",
            hint="`fedplat client budget set --patient COLUMN` names another one.",
        )
    for row, cell in enumerate(table.cells[column]):
        if is_missing(cell):
            raise DataError(
                f"{table.at(row)}: no patient in column {column!r}", hint="Fill the gap, or drop the record."
            )
    return table.cells[column]
