"""The ledger as one silo's runs use it: at the join, before each release, at the end. Everything it returns is signed.

The order in a round, each on disk before the next: the update in the spool, `spend`, the step record of secure
aggregation, the first byte sent.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedplat.errors import DataError, WireError
from fedplat.identity import load_public
from fedplat.ledger import (
    SignedStatement,
    Unit,
    from_wire,
    verify_countersignature,
    verify_statement,
)
from fedplat.privacy import SampledGaussian
from fedplat.privacy.planning import planned_events
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec
from fedplat.spec.privacy import privacy_unit
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.exclusion import read_exclusion
from fedplat_silo.ledger import rules
from fedplat_silo.ledger.book import Book, Registration
from fedplat_silo.ledger.entries import Behind, Reconciled
from fedplat_silo.ledger.errors import RunUnprotected
from fedplat_silo.ledger.journal import lost
from fedplat_silo.ledger.patients import call_the_roll
from fedplat_silo.ledger.receipts import Receipt
from fedplat_silo.ledger.state import steps_of
from fedplat_silo.membership import Membership

log = logging.getLogger(__name__)
DEFAULT_DELTA = 1e-5
"""For the figures of runs without privacy, which have none of their own."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the server knows of this silo's book: the last head that a statement told, and each population's last
    statement."""

    seq: int
    head: str
    copies: tuple[SignedStatement, ...] = ()


def plan_run(spec: RunSpec, num_units: int) -> tuple[SampledGaussian, ...]:
    """What a whole run will release at a silo that samples from so many units; nothing without privacy.

    Calibrates the noise where the spec gives epsilon, which takes seconds. Deterministic. Raises PrivacyError.
    """
    return planned_events(spec, num_units) if spec.privacy.is_private else ()


class Keeper:
    """Thread-safe. Methods raise LedgerError (BudgetExceeded, RunUnprotected, BookBehind, BookDamaged), or OSError."""

    def __init__(self, book: Book, membership: Membership) -> None:
        self.book = book
        self._silo = membership.silo
        self._key = membership.key
        self._server_key = membership.place.server_key

    def check(self, run: str, spec: RunSpec, known: Known | None) -> None:
        """Before any data is touched: whether the book is whole, and the run as private as its dataset's budget asks.

        Also raises IdentityError or WireError for copies that this silo has not signed, or that do not have the head.
        """
        if known is not None:
            statements = [verify_statement(copy, self._key.public_key(), self._silo) for copy in known.copies]
            if (known.seq, known.head) not in {(statement.seq, statement.head) for statement in statements}:
                raise WireError("the server tells a head of the privacy ledger that no statement of this silo has")
            self.book.behind(known.seq, known.head, known.copies)
        state = self.book.look()
        rules.check_current(state)
        if spec.data.name in state.datasets:
            rules.check_protection(state, spec.data.name, run, spec.privacy.mode, _unit(spec))

    def check_head(self, seq: int, head: str) -> None:
        """Raises BookBehind if the server knows a head that the book does not have: it was restored under our feet."""
        state = self.book.look()
        rules.check_current(state)
        if not state.has(seq, head) and head not in state.reconciled_heads:
            raise lost(Behind(told_seq=seq, told_head=head, source="server"), state)

    def enrol(self, spec: RunSpec, data: Path, exclude: Path) -> Registration:
        """Whose data these are, and who of them opted out (`exclude.csv`); reads all of it.

        Raises Refused, with what may leave the silo; RunUnprotected.
        """
        name, column = spec.data.name, self.patient_column(spec)
        try:
            exclusion = read_exclusion(exclude)
            roll = call_the_roll(data, name, column, self.book.key)
        except Refused:
            raise
        except DataError as error:
            raise Refused(Reason.of(Code.DATASET_UNREADABLE, dataset=name), error.message) from None
        registration = self.book.register(name, roll)
        num_found = self.book.exclude(name, exclusion, roll)
        if num_found is not None and num_found < len(exclusion.ids):
            log.warning("dataset %s has %d of the %d patients in %s", name, num_found, len(exclusion.ids), exclude)
        return registration

    def patient_column(self, spec: RunSpec) -> str | None:
        """The column that names the patients: what this silo declared, else what the spec says. Raises RunUnprotected
        if the run would group the records by another column than the silo declared."""
        asked = spec.task.options.get("patient")
        known = self.book.look().datasets.get(spec.data.name)
        declared = known.patient_column if known else None
        if declared is not None and spec.privacy.is_private and _unit(spec) == "patient" and asked != declared:
            raise RunUnprotected(
                f"the run takes column {asked!r} for the patients of dataset {spec.data.name}, and the privacy ledger"
                f" knows them by {declared!r}",
                hint="Name that column in [task.options] patient.",
            )
        return declared or (asked if isinstance(asked, str) else None)

    def reserve(self, run: str, spec: RunSpec, plan: Iterable[SampledGaussian]) -> SignedStatement:
        """Sets aside what the run will release. On disk when this returns."""
        receipt = self.book.reserve(
            run,
            spec_hash=spec.hash,
            dataset=spec.data.name,
            mode=spec.privacy.mode,
            unit=_unit(spec),
            delta=spec.privacy.delta or DEFAULT_DELTA,
            events=plan,
        )
        return self._signed(receipt)

    def planned(self, run: str) -> tuple[SampledGaussian, ...]:
        """What the run has reserved: after a restart it goes on with the same noise. Raises LedgerError."""
        return from_wire(rules.open_page(self.book.look(), run).reserved.events)

    def has_reserved(self, run: str) -> bool:
        """Whether the run has an open reservation; after `reconcile` none has."""
        page = self.book.look().runs.get(run)
        return page is not None and page.is_open

    def check_release(self, run: str, events: Iterable[SampledGaussian]) -> None:
        """Whether `spend` would take this just now. Raises BudgetExceeded, RunUnprotected, BookBehind."""
        state = self.book.look()
        page = rules.open_page(state, run)
        rules.check_current(state)
        rules.check_protection(state, page.reserved.dataset, run, page.reserved.mode, page.reserved.unit)
        rules.check_release(state, page, steps_of(events))

    def spend(self, run: str, round_number: int, attempt: str, events: Iterable[SampledGaussian]) -> SignedStatement:
        """Charges what is about to leave, once for each `attempt` (the update's digest). On disk when this returns."""
        return self._signed(self.book.spend(run, round_number, attempt, events))

    def close(self, run: str) -> SignedStatement | None:
        """The run is over for this silo."""
        receipt = self.book.close(run)
        return self._signed(receipt) if receipt else None

    def close_all_but(self, live: Collection[str]) -> None:
        """Closes the runs that a killed process has left open and that do not go on."""
        for run, page in self.book.look().runs.items():
            if page.is_open and run not in live:
                self.book.close(run)

    def countersigned(self, seq: int, head: str, signature: str) -> None:
        """Keeps the server's signature over a reservation's head. Raises IdentityError if it is not the server's."""
        verify_countersignature(load_public(self._server_key), self._silo, seq, head, signature)
        self.book.countersigned(seq, head, signature)

    def reconcile(
        self, copies: Sequence[SignedStatement] = (), *, whole_reservations: bool = False
    ) -> Reconciled | None:
        """Books what is missing, from the copies that the server handed over at a join, and from these."""
        handed = [copy for told in self.book.look().behind for copy in told.copies]
        statements = [verify_statement(copy, self._key.public_key(), self._silo) for copy in (*handed, *copies)]
        return self.book.reconcile(statements, whole_reservations=whole_reservations)

    def _signed(self, receipt: Receipt) -> SignedStatement:
        return receipt.signed(self._silo, self._key)


def _unit(spec: RunSpec) -> Unit:
    return privacy_unit(spec).value
