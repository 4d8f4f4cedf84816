"""A dataset of the silo: a file that is split here, or a folder with a training and a test file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedplat.reasons import Code, Reason
from fedplat.spec.model import DataSection, Split
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.exclusion import Exclusion, read_kept
from fedplat_silo.data.split import split_rows
from fedplat_silo.data.tables import Table, is_missing, unreadable


@dataclass(frozen=True)
class DataSource:
    """Where a run's data lies (`path`), how the spec wants it split (`section`), and who opted out (`exclusion`)."""

    path: Path
    section: DataSection
    exclusion: Exclusion = field(default_factory=Exclusion)

    def tables(self, columns: tuple[str, ...], patient: str | None = None) -> tuple[Table, Table]:
        """(training, test) tables with the named columns.

        A hash split goes by the `patient` column (one of the `columns`), else by all columns in the order given,
        so one patient, or one of several identical records, is never on both sides. Refused with COLUMN_MISSING,
        VALUE_MISSING (patient), DATASET_UNREADABLE or DATASET_EMPTY.
        """
        if self.section.split is Split.GIVEN:
            train, test = (self._read(self._part(part), columns) for part in ("train", "test"))
        else:
            train, test = self._split(self._read(self.path, columns), columns, patient)
        self._check_filled("training", train)
        if self.section.split is Split.GIVEN or self.section.test_share:
            self._check_filled("test", test)
        return train, test

    def _read(self, path: Path, columns: tuple[str, ...]) -> Table:
        return read_kept(path, columns, self.section.name, self.exclusion)

    def _split(self, table: Table, columns: tuple[str, ...], patient: str | None) -> tuple[Table, Table]:
        if patient is not None:
            _check_patients(table, patient)
        keys = zip(*(table.cells[column] for column in ((patient,) if patient else columns)), strict=True)
        train, test = split_rows(keys, self.section.split_seed, self.section.test_share)
        return table.take(train), table.take(test)

    def _part(self, part: str) -> Path:
        found = [path for ending in (".csv", ".parquet") if (path := self.path / f"{part}{ending}").exists()]
        if len(found) != 1:
            raise unreadable(self.section.name, f"{self.path} must hold either {part}.csv or {part}.parquet")
        return found[0]

    def _check_filled(self, part: str, table: Table) -> None:
        if not len(table):
            reason = Reason.of(Code.DATASET_EMPTY, dataset=self.section.name, part=part)
            raise Refused(reason, f"{table.path}: no records in the {part} set")


def _check_patients(table: Table, patient: str) -> None:
    for row, cell in enumerate(table.cells[patient]):
        if is_missing(cell):
            reason = Reason.of(Code.VALUE_MISSING, column=patient)
            raise Refused(reason, f"{table.at(row)}: no patient key in column {patient!r}")
