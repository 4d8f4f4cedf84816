"""What runs ask of the silo's privacy ledger, and when: at the join, in each round, at the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from pathlib import Path

from fedplat.errors import FedplatError, IdentityError, WireError
from fedplat.home import SiloHome
from fedplat.ledger import LedgerCopy, LedgerHead, SignedStatement
from fedplat.privacy import PrivacyError, SampledGaussian, epsilon
from fedplat.privacy.planning import evaluations, planned_metrics
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.exclusion import exclusion_file
from fedplat_silo.ledger import BookDamaged, Keeper, Known, begin_book, plan_run
from fedplat_silo.ledger.state import events_of, steps_of
from fedplat_silo.membership import load_membership
from fedplat_silo.policy import Policy
from fedplat_silo.spool import Finished

log = logging.getLogger(__name__)
NO_DATA = "none"  # the dataset of a task that needs none


class Accounts:
    """All runs' accounts at this silo. Thread-safe; the book begins with the first run that has data."""

    def __init__(self, home: SiloHome) -> None:
        self.home = home
        self._lock = threading.Lock()
        self._keeper: Keeper | None = None

    def keeper(self) -> Keeper:
        """Raises LedgerError, OSError, or what is wrong with the silo's membership."""
        with self._lock:
            if self._keeper is None:
                self._keeper = Keeper(begin_book(self.home), load_membership(self.home))
            return self._keeper

    def close(self, run: str) -> None:
        """What the run has not spent is free again. Of a damaged book nothing is: `reconcile` closes every run."""
        if not self._has_book():
            return
        try:
            self.keeper().close(run)
        except BookDamaged as error:
            log.warning("run %s stays open in the privacy ledger: %s", run, error.message)

    def close_all_but(self, live: Collection[str]) -> None:
        """For the start: closes what a killed process has reserved for runs that were never quite joined."""
        if not self._has_book():
            return
        try:
            self.keeper().close_all_but(live)
        except (FedplatError, OSError) as error:  # runs hear it when they join
            log.warning("the privacy ledger was not tidied: %s", error)

    def _has_book(self) -> bool:
        return self.home.ledger.exists()


class Account:
    """One run's account. A run without data has none, and nothing is asked of it."""

    def __init__(self, accounts: Accounts, run: str, spec: RunSpec) -> None:
        self._accounts = accounts
        self._run = run
        self._spec = spec
        self._has_data = spec.data.name != NO_DATA

    def check(self, told: LedgerCopy | None) -> None:
        """Before any data is touched. Raises LedgerError; WireError for copies that this silo has not signed."""
        if not self._has_data:
            return
        known = Known(told.seq, told.head, told.copies) if told else None
        try:
            self._accounts.keeper().check(self._run, self._spec, known)
        except IdentityError as error:
            raise WireError(error.message, hint=error.hint) from error
        self._countersigned(told)

    def enrol(self, data: Path) -> None:
        """Whose data these are; reads all of it. Raises Refused, LedgerError."""
        if self._has_data:
            self._accounts.keeper().enrol(self._spec, data, exclusion_file(self._accounts.home))

    def reserve(self, policy: Policy, num_units: int) -> SignedStatement | None:
        """Sets aside what the whole run will release; may take seconds. Raises Refused, LedgerError."""
        if not self._has_data:
            return None
        try:
            plan = plan_run(self._spec, num_units)
        except PrivacyError as error:
            raise Refused(Reason.of(Code.PRIVACY), error.message) from error
        if plan:
            delta, noise = self._spec.privacy.delta, min(event.noise_multiplier for event in plan)
            assert delta is not None
            figure = epsilon(plan, delta=delta)
            refusal = policy.check_plan(epsilon=figure, noise_multiplier=noise)
            if refusal is not None:
                raise Refused(refusal, f"the run comes to epsilon {figure:.3f}, noise {noise:g}")
        return self._accounts.keeper().reserve(self._run, self._spec, plan)

    def look(self, told: LedgerHead | None) -> None:
        """At the beginning of a round. Raises BookBehind; Refused (NOT_JOINED) if the run has nothing reserved."""
        if not self._has_data:
            return
        keeper = self._accounts.keeper()
        if told is not None:
            keeper.check_head(told.seq, told.head)
            self._countersigned(told)
        if not keeper.has_reserved(self._run):
            raise Refused(Reason.of(Code.NOT_JOINED), f"run {self._run} has nothing reserved in the privacy ledger")

    def noise_multiplier(self, *, measures: bool) -> float | None:
        """What this round is to be trained with, None without privacy. Raises LedgerError, BudgetExceeded for one, if
        what it releases could not be charged; `measures`: with the figures of an evaluation."""
        if not self._has_data:
            return None
        keeper = self._accounts.keeper()
        # the noised steps of a silo that samples everybody may have been merged with its evaluations
        steps = steps_of(keeper.planned(self._run)) - steps_of(planned_metrics(self._spec))
        training = [self._one_round(event) for event in events_of(steps)]
        keeper.check_release(self._run, [*training, *(self._evaluation() if measures else ())])
        return training[0].noise_multiplier if training else None

    def check_evaluation(self) -> None:
        """Raises LedgerError, BudgetExceeded for one, if the noised figures of an evaluation could not be charged."""
        if self._has_data and (evaluation := self._evaluation()):
            self._accounts.keeper().check_release(self._run, evaluation)

    def spend(self, round_number: int, finished: Finished) -> SignedStatement | None:
        """Charges what is about to leave, once however often it is sent; on disk when this returns. Raises LedgerError,
        OSError."""
        if not self._has_data:
            return None
        return self._accounts.keeper().spend(self._run, round_number, finished.update.ref.digest, finished.released)

    def _evaluation(self) -> tuple[SampledGaussian, ...]:
        noise = self._spec.privacy.metrics_noise_multiplier
        return () if noise is None else (evaluations(noise),)

    def _one_round(self, planned: SampledGaussian) -> SampledGaussian:
        return SampledGaussian(
            sampling_rate=planned.sampling_rate,
            noise_multiplier=planned.noise_multiplier,
            num_steps=planned.num_steps // self._spec.rounds.count,
        )

    def _countersigned(self, told: LedgerHead | None) -> None:
        signed = told.countersigned if told else None
        if signed is None:
            return
        keeper = self._accounts.keeper()
        state = keeper.book.look()
        is_old = state.countersigned is not None and state.countersigned.head_seq >= signed.seq
        if is_old or not state.has(signed.seq, signed.head):  # of entries that were lost, and are reconciled
            return
        try:
            keeper.countersigned(signed.seq, signed.head, signed.signature)
        except IdentityError as error:
            log.warning("a countersignature under the privacy ledger is not the server's: %s", error.message)
