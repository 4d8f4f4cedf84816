"""A silo's side of one run's secure aggregation, on disk: every answer leaves only after the state that explains it."""

from __future__ import annotations

import logging
import secrets
import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.durable import remove, write_atomic
from fedplat.errors import HomeError, IdentityError
from fedplat.home import SiloHome
from fedplat.secagg import keys, prg, silo
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import (
    AgreeAnswer,
    AgreeQuestion,
    Roster,
    SignedKey,
    TrainPart,
    UnmaskAnswer,
    UnmaskQuestion,
)
from fedplat.secagg.roster import RunBinding, fingerprints
from fedplat.secagg.rules import SiloRules, check_new_step
from fedplat.secagg.state import SiloState, finish, open_run
from fedplat.secagg.terms import StepTerms
from fedplat.spec import RunSpec
from fedplat_silo.membership import load_membership
from fedplat_silo.peers import Peers
from fedplat_silo.policy import Policy

STATE = "masking.json"
log = logging.getLogger(__name__)


# The newest state of every run of this process. Runs of one family train from the same weights, and count each other's
# releases; nobody else writes to the home.
_live: dict[Path, SiloState] = {}
_lock = threading.RLock()


class Masker:
    """Keys, masks, signatures and answers of this silo in one run. Each method raises RefusedError for what the
    silo's rules do not allow, and leaves everything as it was."""

    def __init__(self, home: SiloHome, run: str, spec: RunSpec, parent: str | None = None) -> None:
        membership = load_membership(home)
        self._home = home
        self._min_cohort = spec.secure_aggregation.min_cohort
        self._path = home.run(run) / STATE
        self._identity: ec.EllipticCurvePrivateKey = membership.key
        self._peers = Peers(home.peers)
        binding = RunBinding(ca_fingerprint=membership.place.ca_fingerprint, run=run, spec_hash=spec.hash)
        before = None if parent is None else _load_needed(home.run(parent) / STATE)
        family = before.family if before is not None else parent or ""
        with _lock:
            kept = _load_needed(self._path)
            known = [state for path in home.runs.glob(f"*/{STATE}") if (state := _load_other(path)) is not None]
            mine = kept.family if kept is not None else family or run
            self._state = open_run(kept, binding, home.name, family, (s for s in known if s.family == mine))
            self._keep(self._state)

    def key(self, epoch: int) -> SignedKey:
        """This silo's key for an epoch."""
        with _lock:
            state, key = silo.offer_key(self._state, self._identity, epoch)
            self._keep(state)
        return key

    def check(self, policy: Policy, roster: Roster, terms: StepTerms) -> None:
        """Whether `begin` would open this step, before there is an update. Keeps nothing."""
        with _lock:
            state = silo.accept_roster(self._with_relatives(), self._rules(policy), roster)
            if state.record is None or state.record.step != terms.step:
                check_new_step(state, self._rules(policy), terms)

    def begin(self, policy: Policy, roster: Roster, terms: StepTerms, update: prg.Words) -> TrainPart:
        """Opens a step for a quantised update, which is on disk already, and charged for where that is due."""
        rules = self._rules(policy)
        with _lock:
            state = silo.accept_roster(self._with_relatives(), rules, roster)
            self._remember(roster)
            state, part = silo.begin_step(state, rules, terms, update)
            self._keep(state)
        return part

    def masks(self) -> list[prg.Stream]:
        """The masks of the open step."""
        assert self._state.record is not None
        return silo.masks(self._state.name, self._state.record)

    def agree(self, policy: Policy, question: AgreeQuestion) -> tuple[AgreeAnswer, int]:
        """The signature under a cohort, and how many of the other silos of the step are confirmed here."""
        rules = self._rules(policy)
        with _lock:
            state, answer = silo.agree(self._with_relatives(), rules, self._identity, question)
            self._keep(state)
        silos = state.record.silos if state.record is not None else ()
        return answer, len(rules.pinned & {*silos})

    def unmask(self, question: UnmaskQuestion) -> UnmaskAnswer:
        """What helps to open the sum of a cohort that enough silos have signed."""
        return silo.unmask(self._state, question)

    def rounding_key(self, spec_hash: str, round_number: int) -> bytes:
        """The key of a round's stochastic rounding: the same when the round is repeated."""
        path = self._home.identity / "rounding.key"
        with _lock:
            if not path.exists():
                write_atomic(path, secrets.token_bytes(keys.KEY_BYTES))
            return keys.rounding_key(path.read_bytes(), spec_hash, round_number)

    def _remember(self, roster: Roster) -> None:
        try:
            self._peers.remember(fingerprints(roster, without=self._home.name))
        except IdentityError as error:  # two runs are shown different keys at the same moment
            log.warning("%s", error.message)
            raise RefusedError(Refusal.PEER_CHANGED) from None

    def _rules(self, policy: Policy) -> SiloRules:
        return SiloRules(
            known=self._peers.known(),
            min_cohort=max(policy.min_cohort, policy.smallest_cohort, self._min_cohort),
            max_releases_per_model=policy.max_releases_per_model,
            min_pinned_cohort=policy.min_pinned_cohort,
            pinned=self._peers.pinned(),
        )

    def _with_relatives(self) -> SiloState:
        """The state, with what other runs of the family have released meanwhile."""
        mine = self._state
        relatives = [s for path, s in _live.items() if path != self._path and s.family == mine.family]
        return open_run(mine, mine.binding, mine.name, mine.family, relatives) if relatives else mine

    def _keep(self, state: SiloState) -> None:
        if state is not self._state or not self._path.exists():
            write_atomic(self._path, state.to_json().encode())
        self._state = _live[self._path] = state


def forget_secrets(home: SiloHome, run: str) -> None:
    """The run is over: its keys and seeds go; what must never be done again stays known."""
    path = home.run(run) / STATE
    with _lock:
        try:
            state = _load(path)
        except HomeError as error:
            log.warning("run %s: %s; its run is over, and it is removed", run, error.message)
            remove(path)
            return
        if state is not None:
            _live[path] = finish(state)
            write_atomic(path, _live[path].to_json().encode())


def _load(path: Path) -> SiloState | None:
    return SiloState.from_json(path.read_text(errors="replace")) if path.exists() else None


def _load_needed(path: Path) -> SiloState | None:
    """Of this run or of the one it goes on from: what it has released counts, so damage is no fresh start."""
    try:
        return _load(path)
    except HomeError as error:
        log.warning("%s: %s\n  %s", path, error.message, error.hint)
        raise RefusedError(Refusal.STATE_DAMAGED) from None


def _load_other(path: Path) -> SiloState | None:
    """Of another run, whose damage is not this one's."""
    try:
        return _load(path)
    except HomeError as error:
        log.warning("%s: %s", path, error.message)
        return None
