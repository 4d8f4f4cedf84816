"""The book: what this silo's patients were charged, for life. On disk before any release.

reserve -> spend -> close. What is reserved and not closed counts as spent when another run asks; what is spent is
noted before it leaves, so that a crash over-counts and never under-counts.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedplat.errors import ConflictError, NotFoundError
from fedplat.ledger import Deed, SignedStatement, Statement, Unit, from_wire, to_wire
from fedplat.privacy import SampledGaussian
from fedplat.privacy.values import checked_delta
from fedplat_silo.data.exclusion import Exclusion
from fedplat_silo.ledger import rolls, rules
from fedplat_silo.ledger.entries import (
    Behind,
    BudgetSet,
    Closed,
    Countersigned,
    ExclusionUsed,
    Reconciled,
    Registered,
    Reserved,
    Spent,
)
from fedplat_silo.ledger.errors import BookBehind, LedgerError
from fedplat_silo.ledger.journal import RECONCILE, Journal, Pen
from fedplat_silo.ledger.patients import PatientKey, Roll
from fedplat_silo.ledger.receipts import Receipt, receipt
from fedplat_silo.ledger.reconciling import charges, lacks_copies, next_era
from fedplat_silo.ledger.state import State, events_of, steps_of


@dataclass(frozen=True, slots=True)
class Registration:
    """A dataset in the book. `shares_with`: the other datasets of its population, which has one budget.
    `is_new`: the book did not know these data yet."""

    population: str
    version: int
    shares_with: tuple[str, ...]
    is_new: bool


class Book:
    """The privacy ledger of one silo. Thread-safe, and safe against other processes at the same book.

    Methods raise LedgerError, or OSError for a full disk; then what was asked has not been done.
    """

    def __init__(self, journal: Journal, key: PatientKey) -> None:
        self.journal = journal
        self.key = key

    def register(self, dataset: str, roll: Roll) -> Registration:
        """From now on the dataset holds these patients; it joins the population of any that it shares patients with."""
        with self.journal.writing() as pen:
            state, known = pen.state, pen.state.datasets.get(dataset)
            is_new = known is None or (known.content, known.patient_column) != (roll.content, roll.patient_column)
            if is_new:
                _register(pen, dataset, roll)
            found = state.datasets[dataset]
            population = state.root(found.population)
            others = tuple(d.name for d in state.datasets_of(population) if d.name != dataset)
            return Registration(population, found.version, others, is_new)

    def exclude(self, dataset: str, exclusion: Exclusion, roll: Roll) -> int | None:
        """From now on these patients take no part. How many of them the dataset has; None if that cannot be told."""
        ids = sorted(self.key.patient(one) for one in exclusion.ids)
        can_tell = exclusion.column is None or exclusion.column == roll.patient_column
        num_found = sum(one in roll.ids for one in ids) if can_tell else None
        members = [(one, True) for one in ids]
        used = ExclusionUsed(
            dataset=dataset,
            column=exclusion.column,
            num_listed=len(ids),
            num_found=num_found,
            change=rolls.digest(members),
        )
        with self.journal.writing() as pen:
            known = rules.dataset_of(pen.state, dataset)
            if used.change != (known.exclusion_change or rolls.digest(())):
                pen.write(used, members)
        return num_found

    def set_budget(self, dataset: str, *, epsilon: float, delta: float, unit: Unit) -> None:
        """What each patient of the dataset may be charged in all, for life; also less than was spent already."""
        if not (math.isfinite(epsilon) and epsilon >= 0):
            raise LedgerError(f"a budget of epsilon = {epsilon} is none", hint="A finite number, at least 0.")
        delta = checked_delta(delta)
        with self.journal.writing() as pen:
            population = pen.state.root(rules.dataset_of(pen.state, dataset).population)
            pen.write(BudgetSet(dataset=dataset, population=population, epsilon=epsilon, delta=delta, unit=unit))

    def reserve(
        self,
        run: str,
        *,
        spec_hash: str,
        dataset: str,
        mode: str,
        unit: Unit,
        delta: float,
        events: Iterable[SampledGaussian] = (),
    ) -> Receipt:
        """Sets aside what a run plans to spend in all, or raises BudgetExceeded, RunUnprotected, BookBehind.

        Asked again with another plan, the new one takes the place of the old one. `delta` is for the figures of
        patients that have no budget. A run without privacy reserves nothing; it is noted that it took part.
        """
        planned = steps_of(events)
        with self.journal.writing() as pen:
            state, known = pen.state, rules.dataset_of(pen.state, dataset)
            rules.check_current(state)
            rules.check_protection(state, dataset, run, mode, unit)
            wanted = Reserved(
                run=run,
                spec_hash=spec_hash,
                dataset=dataset,
                population=state.root(known.population),
                version=known.version,
                exclusion=known.exclusion,
                mode=mode,
                unit=unit,
                delta=delta,
                events=to_wire(events_of(planned)),
            )
            _check_same(state, wanted)
            rules.check_plan(state, run, known, planned)
            pen.write(wanted)
            return receipt(state, Deed.RESERVED, state.runs[run], events_of(planned))

    def spend(self, run: str, round_number: int, attempt: str, events: Iterable[SampledGaussian] = ()) -> Receipt:
        """Notes a release, on disk when this returns, or raises BudgetExceeded, RunUnprotected, BookBehind.

        `attempt` names what is released, best by its digest: the same again is charged once, another one anew.
        """
        released = steps_of(events)
        with self.journal.writing() as pen:
            if not _is_spent(pen.state, run, round_number, attempt):
                _spend(pen, run, round_number, attempt, events_of(released))
            page = pen.state.runs[run]
            if steps_of(from_wire(page.spends[round_number, attempt].events)) != released:
                raise ConflictError(
                    f"run {run}, round {round_number}: this release is in the privacy ledger with another charge",
                    hint="Each release has one name and one charge.",
                )
            return receipt(pen.state, Deed.SPENT, page, events_of(released), (round_number, attempt))

    def close(self, run: str) -> Receipt | None:
        """The run releases nothing more: what it did not spend is free again. None if the book does not know it."""
        with self.journal.writing() as pen:
            page = pen.state.runs.get(run)
            if page is None:
                return None
            if page.is_open:
                pen.write(Closed(run=run))
            return receipt(pen.state, Deed.CLOSED, page)

    def countersigned(self, seq: int, head: str, signature: str) -> None:
        """Keeps the server's signature over a reservation's head; the caller has verified it."""
        with self.journal.writing() as pen:
            state = pen.state
            if not state.has(seq, head) or pen.entry(seq).kind != "reserve":
                raise BookBehind("the server has signed a head that this book does not have", hint=RECONCILE)
            if state.countersigned is None or state.countersigned.head_seq < seq:
                pen.write(Countersigned(head_seq=seq, head=head, signature=signature))

    def behind(self, seq: int, head: str, copies: Sequence[SignedStatement] = ()) -> bool:
        """Whether entries are missing, of which the server's last known head is one. Then nothing is spent until
        `reconcile`, for which `copies`, the silo's own statements, are kept. The caller has verified them."""
        with self.journal.writing() as pen:
            state = pen.state
            told = Behind(told_seq=seq, told_head=head, source="server", copies=tuple(copies))
            if not state.has(seq, head) and head not in state.reconciled_heads and told not in state.behind:
                pen.write(told)
            elif state.behind and copies and told not in state.behind:
                pen.write(told)  # the book found out by itself, and now hears what is missing
            return bool(state.behind)

    def reconcile(self, copies: Sequence[Statement] = (), *, whole_reservations: bool = False) -> Reconciled | None:
        """Charges what the lost entries had released or reserved, and closes all runs; None if nothing is missing.

        `copies` are this silo's own verified statements. Without them BookBehind is raised, unless
        `whole_reservations`: then each open run is charged in full, and what the book never heard of is not.
        """
        with self.journal.writing() as pen:
            state = pen.state
            if not state.behind:
                return None
            if not whole_reservations and lacks_copies(state, copies):
                raise BookBehind("the server's copy of the lost entries is not here", hint=RECONCILE)
            done = Reconciled(
                era=next_era(state, copies),
                heads=tuple(dict.fromkeys(told.told_head for told in state.behind)),
                charges=charges(state, copies),
                closed=tuple(name for name, page in state.runs.items() if page.is_open),
            )
            pen.write(done)
            return done

    def look(self) -> State:
        """What the book says now; not to be changed."""
        with self.journal.reading() as pen:
            return pen.state

    def head(self) -> tuple[int, str]:
        """The last entry's number and hash."""
        state = self.look()
        return len(state.hashes), state.hashes[-1]


def _register(pen: Pen, dataset: str, roll: Roll) -> None:
    state, known = pen.state, pen.state.datasets.get(dataset)
    touched = {state.root(state.version_population[seq]) for seq in _versions(pen, roll)} | set(state.homeless())
    own = [state.root(known.population)] if known else []
    population = [*own, *sorted(touched), secrets.token_hex(16)][0]
    members = rolls.changes(rolls.current(pen.connection, state.versions.get(dataset, [])), roll.ids)
    registered = Registered(
        dataset=dataset,
        population=population,
        merged=tuple(sorted(touched - {population})),
        patient_column=roll.patient_column,
        num_records=roll.num_records,
        num_patients=roll.num_patients,
        content=roll.content,
        change=rolls.digest(members),
    )
    pen.write(registered, members)


def _versions(pen: Pen, roll: Roll) -> set[int]:
    """The versions of datasets in which any of these patients or records ever were."""
    return rolls.overlapping(pen.connection, roll.ids) & pen.state.version_population.keys()


def _check_same(state: State, wanted: Reserved) -> None:
    """Raises ConflictError if the run was another one."""
    page = state.runs.get(wanted.run)
    if page and (page.reserved.spec_hash, page.reserved.dataset) != (wanted.spec_hash, wanted.dataset):
        raise ConflictError(
            f"run {wanted.run} is in the privacy ledger with another spec", hint="Submit it as a new run."
        )


def _is_spent(state: State, run: str, round_number: int, attempt: str) -> bool:
    if run not in state.runs:
        raise NotFoundError(f"run {run} is not in the privacy ledger", hint="It reserves when it joins.")
    return (round_number, attempt) in state.runs[run].spends


def _spend(pen: Pen, run: str, round_number: int, attempt: str, events: tuple[SampledGaussian, ...]) -> None:
    state, page = pen.state, rules.open_page(pen.state, run)
    rules.check_current(state)
    rules.check_protection(state, page.reserved.dataset, run, page.reserved.mode, page.reserved.unit)
    rules.check_release(state, page, steps_of(events))
    dataset = state.datasets[page.reserved.dataset]
    spent = Spent(
        run=run,
        round=round_number,
        attempt=attempt,
        version=dataset.version,
        exclusion=dataset.exclusion,
        events=to_wire(events),
    )
    pen.write(spent)
