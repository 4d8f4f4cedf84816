"""Whatever happens in whatever order, crashes too: the book never says less than what has left the silo."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedplat import durable
from fedplat_silo.ledger import (
    BookBehind,
    BudgetExceeded,
    Keeper,
    Known,
    LedgerError,
    overview,
    receipts,
    rules,
    verify_book,
)
from tests.support.crashes import Crash
from tests.unit.ledger.scene import SILO, Scene, quick_epsilon, steps

RUNS = st.sampled_from(["r-1", "r-2", "r-3"])
NUM_STEPS = st.integers(1, 4)


class DyingNote(durable.Filesystem):
    """Dies when the note of the last entry is written: the entry is in the book, the caller never hears of it."""

    def rename(self, source: Path, target: Path) -> None:
        raise Crash


class Ledger(RuleBasedStateMachine):
    """`released`: steps that left the silo, by round, which is the truth. `uncertain`: those charged in a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for module in (rules, receipts, overview):
            self.patch.setattr(module, "epsilon", quick_epsilon)
        self.folder = Path(tempfile.mkdtemp(prefix="fp-ledger-"))
        self.scene = Scene(self.folder)
        self.scene.register()
        self.released: Counter[tuple[str, int, str]] = Counter()
        self.repeats = 0
        self.limit = 0.0
        self.snapshot: dict[str, bytes] | None = None
        self.told: Known | None = None
        self.num_attempts = 0

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.folder)

    @initialize(limit=st.integers(5, 30))
    def begin(self, limit: int) -> None:
        self.set_budget(limit)

    @rule(limit=st.integers(0, 40))
    def set_budget(self, limit: int) -> None:
        self.scene.budget(limit)
        self.limit = limit

    @rule(run=RUNS, num=NUM_STEPS, is_countersigned=st.booleans())
    def reserve(self, run: str, num: int, is_countersigned: bool) -> None:
        before = self.committed()
        with suppress(BudgetExceeded, BookBehind):
            receipt = self.scene.reserve(run, steps(num))
            self.tell(receipt)
            if is_countersigned:
                self.scene.book.countersigned(receipt.entry.seq, receipt.entry.hash, "00" * 70)
            after = self.committed()
            # a plan of no more than was spent asks for nothing, and gives back the rest of the one before
            assert after <= self.limit or after <= before, "a plan was let in that does not fit"

    @rule(run=RUNS, number=st.integers(1, 3), num=NUM_STEPS)
    def spend(self, run: str, number: int, num: int) -> None:
        """A new update, noted and then released."""
        self.num_attempts += 1
        attempt = f"a{self.num_attempts}"
        before = sum(self.released.values())
        with suppress(LedgerError):
            receipt = self.spent(run, number, attempt, num)
            if receipt:
                self.tell(receipt)
                assert before + num <= self.limit, "more was released than the budget allows"
                self.released[run, number, attempt] = num

    @precondition(lambda self: self.released)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """The server asks for an update that it has had: the same bytes, and no charge."""
        run, number, attempt = data.draw(st.sampled_from(sorted(self.released)))
        total = self.total()
        with suppress(LedgerError):  # lost with a restored book
            self.spent(run, number, attempt, self.released[run, number, attempt])
            if (run, number, attempt) in {
                (r, *k) for r, page in self.scene.book.look().runs.items() for k in page.spends
            }:
                assert self.total() >= total

    @rule(run=RUNS, number=st.integers(1, 3), num=NUM_STEPS)
    def die_in_a_spend(self, run: str, number: int, num: int) -> None:
        """The charge may be on disk, the update has not left; the next process trains again, with other noise."""
        self.num_attempts += 1
        self.patch.setattr(durable, "filesystem", DyingNote())
        with suppress(Crash, LedgerError):
            receipt = self.spent(run, number, f"a{self.num_attempts}", num)
            assert receipt is None, "the note was not written"
        self.patch.setattr(durable, "filesystem", durable.Filesystem())
        self.scene.reopen()

    @rule(run=RUNS)
    def close(self, run: str) -> None:
        receipt = self.scene.book.close(run)
        if receipt is not None:
            self.tell(receipt)

    @rule()
    def restart(self) -> None:
        self.scene.reopen()

    @rule()
    def back_up(self) -> None:
        self.snapshot = self.scene.files()

    @precondition(lambda self: self.snapshot and self.told)
    @rule()
    def restore_and_reconcile(self) -> None:
        """An old copy of everything; the server, asked at the next join, knows better."""
        assert self.snapshot is not None
        assert self.told is not None
        self.scene.restore(self.snapshot)
        keeper = Keeper(self.scene.reopen(), self.scene.membership)
        self.scene.book.behind(self.told.seq, self.told.head, self.told.copies)
        if self.scene.book.look().behind:
            with pytest.raises(BookBehind):
                self.scene.reserve("r-9", steps(1))
            keeper.reconcile()
        state = self.scene.book.look()
        self.limit = min(budget.epsilon for budget in state.budgets(state.populations()[0]))
        self.snapshot = None

    @invariant()
    def the_book_never_says_less_than_what_left(self) -> None:
        assert self.total() >= sum(self.released.values())

    @invariant()
    def the_book_is_whole(self) -> None:
        verify_book(self.scene.home)

    def spent(self, run: str, number: int, attempt: str, num: int) -> receipts.Receipt | None:
        if run not in self.scene.book.look().runs:
            return None
        return self.scene.book.spend(run, number, attempt, [steps(num)])

    def tell(self, receipt: receipts.Receipt) -> None:
        self.told = Known(receipt.entry.seq, receipt.entry.hash, (receipt.signed(SILO, self.scene.key),))

    def committed(self) -> int:
        state = self.scene.book.look()
        return state.committed(state.populations()[0]).total()

    def total(self) -> int:
        state = self.scene.book.look()
        population = state.population("heart")
        assert population is not None
        return state.spent(population).total()


Ledger.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestLedger = Ledger.TestCase
