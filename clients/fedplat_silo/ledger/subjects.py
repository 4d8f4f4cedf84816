"""In which runs a patient's records took part: what a data subject may ask (GDPR, article 15)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fedplat_silo.ledger import rolls
from fedplat_silo.ledger.book import Book
from fedplat_silo.ledger.journal import Pen
from fedplat_silo.ledger.state import RunBook


@dataclass(frozen=True, slots=True)
class Part:
    """A run for which a patient's records were there. `num_releases`: from how many something left the silo."""

    run: str
    dataset: str
    mode: str
    joined_at: datetime
    num_releases: int


@dataclass(frozen=True, slots=True)
class Subject:
    """`datasets`: where the patient is now. `excluded_from`: of those, where the patient opted out.
    `not_searched`: datasets without a patient column, in which nobody can be found by id."""

    datasets: tuple[str, ...]
    excluded_from: tuple[str, ...]
    not_searched: tuple[str, ...]
    runs: tuple[Part, ...]


def find_subject(book: Book, patient: str) -> Subject:
    """By the patient's id as it is in the data."""
    one = book.key.patient(patient)
    with book.journal.reading() as pen:
        state = pen.state
        present = [d for d in state.datasets.values() if rolls.is_present(pen.connection, one, state.versions[d.name])]
        runs = (_part(pen, one, page) for page in state.runs.values())
        return Subject(
            datasets=tuple(d.name for d in present),
            excluded_from=tuple(d.name for d in present if _is_excluded(pen, one, d.exclusion)),
            not_searched=tuple(d.name for d in state.datasets.values() if d.patient_column is None),
            runs=tuple(part for part in runs if part is not None),
        )


def _part(pen: Pen, one: bytes, page: RunBook) -> Part | None:
    """None if the patient's records were not in the run."""
    reserved = page.reserved
    versions = pen.state.versions[reserved.dataset]
    releases = [(spent.version, spent.exclusion) for spent in page.spends.values()]

    def is_in(version: int, exclusion: int | None) -> bool:
        upto = [v for v in versions if v <= version]
        return rolls.is_present(pen.connection, one, upto) and not _is_excluded(pen, one, exclusion)

    num_releases = sum(is_in(*release) for release in releases)
    if not num_releases and not is_in(reserved.version, reserved.exclusion):
        return None
    return Part(reserved.run, reserved.dataset, reserved.mode, pen.entry(page.first_seq).time, num_releases)


def _is_excluded(pen: Pen, one: bytes, exclusion: int | None) -> bool:
    return exclusion is not None and rolls.is_present(pen.connection, one, [exclusion])
