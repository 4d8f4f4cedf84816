"""What the silo's own book has to say for a privacy report. Reads; needs neither server nor network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fedplat.errors import FedplatError, NotFoundError
from fedplat.identity import load_public
from fedplat.ledger import Unit, to_wire
from fedplat.privacy.planning import planned_events
from fedplat.report import BookFacts, DatasetFacts, Limit, Material, Release, RunFacts, RunState
from fedplat.report.material import spec_facts
from fedplat.report.sums import tightest
from fedplat.spec.privacy import privacy_unit
from fedplat_silo.approvals import find
from fedplat_silo.audit.records import kept
from fedplat_silo.ledger import BookBehind, find_book, verify_book
from fedplat_silo.ledger.entries import Entry, ExclusionUsed, Spent
from fedplat_silo.ledger.overview import DELTA
from fedplat_silo.ledger.rules import UNPROTECTED
from fedplat_silo.ledger.state import Dataset, RunBook, State, events_of
from fedplat_silo.ledger.storage import entries_after
from fedplat_silo.membership import load_place
from fedplat_silo.records import recall_run

if TYPE_CHECKING:
    from fedplat.home import SiloHome
    from fedplat.spec import RunSpec


@dataclass(frozen=True, slots=True)
class Reading:
    """The book at one moment."""

    facts: BookFacts
    state: State
    entries: tuple[Entry, ...]


def of_dataset(home: SiloHome, dataset: str | None) -> Material:
    """The life of a dataset's patients; of all there are, if the book has one population only. NotFoundError."""
    reading = _read(home)
    if dataset is None:
        return _material(home, reading, _the_only(reading.state))
    population = reading.state.population(dataset)
    if population is None:
        known = ", ".join(reading.state.datasets) or "none"
        raise NotFoundError(f"dataset {dataset} is not in the privacy ledger", hint=f"There are: {known}.")
    return _material(home, reading, population)


def of_run(home: SiloHome, run: str) -> Material:
    """A run, beside the life of its patients. Raises NotFoundError."""
    reading = _read(home)
    page = reading.state.runs.get(run)
    if page is None:
        known = ", ".join(reading.state.runs) or "none"
        raise NotFoundError(f"run {run} is not in the privacy ledger of silo {home.name}", hint=f"There are: {known}.")
    return _material(home, reading, reading.state.root(page.reserved.population), run)


def of_plan(home: SiloHome, spec: RunSpec, num_units: int) -> Material:
    """A run before it begins, beside the life of its patients as far as there is a ledger. Raises PrivacyError."""
    planned = RunFacts(
        run=f"{spec.name} (plan)"[:63],
        dataset=spec.data.name,
        spec_hash=spec.hash,
        mode=spec.privacy.mode,
        unit=privacy_unit(spec).value,
        state=RunState.PLANNED,
        has_privacy=spec.privacy.is_private,
        rest=to_wire(planned_events(spec, num_units)) if spec.privacy.is_private else (),
        spec=spec_facts(spec),
    )
    try:
        reading: Reading | None = _read(home)
    except NotFoundError:
        reading = None
    population = reading.state.population(spec.data.name) if reading else None
    delta = spec.privacy.delta or DELTA
    return _material(home, reading, population, planned.run, plan=planned, num_units=num_units, delta=delta)


def _read(home: SiloHome) -> Reading:
    book, place, problem, countersigned = find_book(home), load_place(home), "", None
    try:
        countersigned = verify_book(home, load_public(place.server_key) if place else None).countersigned
    except BookBehind as error:  # it can be read, and must not be relied on
        problem = error.message
    with book.journal.reading() as pen:
        state, entries = pen.state, tuple(entries_after(pen.connection, 0))
    facts = BookFacts(seq=len(state.hashes), head=state.hashes[-1], countersigned=countersigned, problem=problem)
    return Reading(facts, state, entries)


def _the_only(state: State) -> str:
    populations = state.populations()
    if len(populations) != 1:
        known = ", ".join(state.datasets) or "none"
        raise NotFoundError("which dataset?", hint=f"Name it: --dataset NAME. There are: {known}.")
    return populations[0]


def _material(
    home: SiloHome,
    reading: Reading | None,
    population: str | None,
    subject: str | None = None,
    *,
    plan: RunFacts | None = None,
    num_units: int | None = None,
    delta: float = DELTA,
) -> Material:
    state = reading.state if reading is not None and population is not None else State()
    pages = list(state.runs_of(population)) if population else []
    runs = (*(_run(home, page) for page in pages), *((plan,) if plan else ()))
    datasets = state.datasets_of(population) if population else []
    names = {one.name for one in datasets} | {run.dataset for run in runs}
    limits = tuple(Limit(epsilon=b.epsilon, delta=b.delta, unit=b.unit) for b in state.budgets(population or ""))
    budget = tightest(limits)
    asked = next((page.reserved.delta for page in pages if subject in (page.reserved.run, None)), delta)
    return Material(
        made_at=datetime.now(UTC).replace(microsecond=0),
        silo=home.name,
        book=reading.facts if reading else None,
        datasets=tuple(_dataset(one, reading.entries) for one in datasets) if reading else (),
        unit=_unit(runs, datasets, budget),
        limits=limits,
        delta=budget.delta if budget else asked,
        runs=runs,
        releases=tuple(_releases(reading, pages)) if reading else (),
        lost=to_wire(events_of(state.lost(population))) if population else (),
        audits=tuple(audit for audit in kept(home) if audit.dataset in names),
        subject=subject,
        num_units=num_units,
    )


def _unit(runs: Iterable[RunFacts], datasets: Iterable[Dataset], budget: Limit | None) -> Unit:
    """The weakest of what was protected: figures of record-level runs do not bound what is told about a patient."""
    protected = {run.unit for run in runs if run.has_privacy}
    if protected:
        return "record" if "record" in protected else "patient"
    if budget is not None:
        return budget.unit
    return "patient" if any(dataset.patient_column for dataset in datasets) else "record"


def _run(home: SiloHome, page: RunBook) -> RunFacts:
    reserved = page.reserved
    spec = _spec(home, reserved.run, reserved.spec_hash)
    return RunFacts(
        run=reserved.run,
        dataset=reserved.dataset,
        spec_hash=reserved.spec_hash,
        mode=reserved.mode,
        unit=reserved.unit,
        state=RunState.OPEN if page.is_open else RunState.CLOSED,
        has_privacy=reserved.mode != UNPROTECTED,
        rest=to_wire(events_of(page.rest)),
        spec=spec_facts(spec) if spec else None,
    )


def _spec(home: SiloHome, run: str, spec_hash: str) -> RunSpec | None:
    """Of a run that took part or was asked about here, by the hash in the book; None if its file is lost or altered."""
    found: list[RunSpec] = []
    with suppress(OSError, ValueError):
        found.append(recall_run(home, run))
    with suppress(FedplatError):
        found.append(find(home, run).spec)
    return next((spec for spec in found if spec.hash == spec_hash), None)


def _dataset(dataset: Dataset, entries: tuple[Entry, ...]) -> DatasetFacts:
    used = entries[dataset.exclusion - 1].fields() if dataset.exclusion else None
    return DatasetFacts(
        name=dataset.name,
        num_records=dataset.num_records,
        num_patients=dataset.num_patients,
        num_excluded=used.num_found if isinstance(used, ExclusionUsed) else None,
    )


def _releases(reading: Reading, pages: list[RunBook]) -> Iterator[Release]:
    wanted = {page.reserved.run for page in pages}
    for entry in reading.entries:
        spent = entry.fields() if entry.kind == "spend" else None
        if isinstance(spent, Spent) and spent.run in wanted:
            yield Release(at=entry.time, run=spent.run, round=spent.round, attempt=spent.attempt, events=spent.events)
