"""Secure aggregation in one run, as the server sees it: its epochs, and the terms of its steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedplat.identity import fingerprint
from fedplat.reasons import LATER, Code, Reason
from fedplat.secagg.errors import RefusedError
from fedplat.secagg.figures import FiguresFormat
from fedplat.secagg.messages import Roster, SignedKey
from fedplat.secagg.roster import RunBinding, check_key, fingerprints, make_roster, roster_hash
from fedplat.secagg.server import ServerStep
from fedplat.secagg.thresholds import colluders_tolerated, threshold
from fedplat.spec import RunSpec
from fedplat.spec.secure import MAX_SILOS
from fedplat.spec.weighting import largest_weight
from fedplat.wire.messages import AgreeReply, KeysReply, KeysRequest, Masking, StepRequest, TrainRequest, UnmaskReply
from fedplat.wire.terms import Shape, step_terms
from fedplat_server.exchange import Inquiry
from fedplat_server.recruiting import RunPaused
from fedplat_server.registry import Member
from fedplat_server.store import SecureEpoch, SecureStep, Store
from fedplat_server.uploads import named

_WORD_BYTES = 4
_KEYS_TIMEOUT_S = 60.0


class Asking(Protocol):
    """What the questions of secure aggregation are asked through."""

    def keys(self) -> Inquiry[KeysReply]: ...
    def agree(self) -> Inquiry[AgreeReply]: ...
    def unmask(self) -> Inquiry[UnmaskReply]: ...
    def members(self, names: Sequence[str]) -> list[Member]: ...


@dataclass(frozen=True)
class Epoch:
    """Who masks with whom, until silos come or lose their keys. `max_weight`: the weight that counts fully."""

    roster: Roster
    max_weight: float

    @classmethod
    def from_row(cls, row: SecureEpoch) -> Epoch:
        """As the store has it."""
        return cls(Roster.model_validate(row.roster), row.max_weight)

    @property
    def names(self) -> frozenset[str]:
        """The silos of the roster."""
        return frozenset(key.name for key in self.roster.keys)

    def has_keys_of(self, members: Sequence[Member]) -> bool:
        """Whether each of them is in the roster, with the key that it has now: keys rotate."""
        shown = fingerprints(self.roster)
        return all(shown.get(m.name) == fingerprint(m.public_key) for m in members)

    def masking(self) -> Masking:
        """What goes into the questions of a step."""
        return Masking(roster=self.roster, max_weight=self.max_weight)


@dataclass
class SecureRun:
    """One run's secure aggregation. `stale`: the epochs of which a silo has lost its keys. `without`: who gave no key
    for the newest, and why."""

    binding: RunBinding
    spec: RunSpec
    store: Store
    asking: Asking
    shape: Shape
    minimum: int
    stale: set[int] = field(default_factory=set)
    without: dict[str, Reason] = field(default_factory=dict)
    _refused: set[str] = field(default_factory=set)

    @property
    def figures(self) -> FiguresFormat:
        """How figures lie behind the update."""
        return FiguresFormat(self.shape.empty_sums)

    @property
    def upload_bytes(self) -> int:
        """The length of a masked update."""
        return (self.shape.size + self.figures.length) * _WORD_BYTES

    def smallest_cohort(self, num_silos: int) -> int:
        """The fewest uploads of a step with so many silos whose sum can be opened."""
        return max(self.minimum, threshold(num_silos, self.spec.secure_aggregation.strong))

    def newest(self) -> Epoch | None:
        """The run's epoch, if it has one yet."""
        row = self.store.secure.epoch(self.binding.run)
        return None if row is None else Epoch.from_row(row)

    def epoch_for(self, members: Sequence[Member]) -> Epoch:
        """The newest epoch if it has the keys of all `members` but those that refuse; else a new one, of those that
        offer a key in time. RunPaused if they are too few."""
        epoch = self.newest()
        wanted = [m for m in members[:MAX_SILOS] if m.name not in self._refused]
        if epoch is not None and epoch.roster.epoch not in self.stale and epoch.has_keys_of(wanted):
            return epoch
        return self._begin(members[:MAX_SILOS], 1 if epoch is None else epoch.roster.epoch + 1)

    def renew(self) -> None:
        """A silo has lost its keys: the next round begins an epoch."""
        if (epoch := self.newest()) is not None:
            self.stale.add(epoch.roster.epoch)

    def _begin(self, members: Sequence[Member], number: int) -> Epoch:
        keys, said = self._gather(members, number)
        for silo, reason in said.items():
            self._note_missing(silo, reason, number)
        self.without = said
        self._refused = {silo for silo, reason in said.items() if reason.code not in LATER | {Code.NO_ANSWER}}
        if len(keys) < max(2, self.smallest_cohort(len(keys))):
            have = f"{len(keys)} of at least {self.minimum} silos offer keys for secure aggregation"
            raise RunPaused(f"{have} ({named(said) or 'nobody else takes part'})", "too_few_silos")
        first_step = self.store.secure.next_step(self.binding.run)
        known = {m.name: fingerprint(m.public_key) for m in members}
        roster = make_roster(self.binding, number, first_step, list(keys.values()), known)
        row = self.store.secure.open_epoch(
            run_id=self.binding.run,
            epoch=number,
            first_step=first_step,
            roster=roster.model_dump(mode="json"),
            max_weight=max(self._weights(keys).values()),
        )
        return Epoch.from_row(row)

    def _gather(self, members: Sequence[Member], number: int) -> tuple[dict[str, SignedKey], dict[str, Reason]]:
        """The keys that are good, and why there is none from the others."""
        keys: dict[str, SignedKey] = {}
        said: dict[str, Reason] = {}
        known = {m.name: m for m in members}
        weights = self._weights(known)
        begun_s, most_s = time.monotonic(), self.spec.rounds.timeout_s
        with self.asking.keys() as inquiry:
            inquiry.ask(members, KeysRequest(run=self.binding.run, spec_hash=self.spec.hash, epoch=number))
            while inquiry.waiting_for:
                # A silo that is in the middle of its training answers after that.
                is_enough = len(keys) >= max(2, self.smallest_cohort(len(keys)))
                left_s = begun_s + (min(_KEYS_TIMEOUT_S, most_s) if is_enough else most_s) - time.monotonic()
                if left_s <= 0:
                    break
                for given in inquiry.answers(min(1.0, left_s)):
                    reason = given.failed or self._bad(known[given.silo], number, given.parcel.body.key)
                    if reason is None and given.silo not in weights:
                        reason = Reason.of(Code.POLICY, rule="share_counts")
                    if reason is not None:
                        said[given.silo] = reason
                    elif (key := given.parcel.body.key) is not None:
                        keys[given.silo] = key
            return keys, said | dict.fromkeys(inquiry.waiting_for, Reason.of(Code.NO_ANSWER))

    def _bad(self, member: Member, number: int, key: SignedKey | None) -> Reason | None:
        """Why a key cannot be used."""
        if key is None or key.name != member.name:
            return Reason.of(Code.MESSAGE_INVALID)
        try:
            check_key(self.binding, number, key, fingerprint(member.public_key))
        except RefusedError as error:
            return Reason.of_refusal(error.refusal)
        return None

    def _note_missing(self, silo: str, reason: Reason, epoch: int) -> None:
        detail = {"epoch": epoch, "why": str(reason), "hint": reason.hint}
        note, run = self.store.events.append, self.binding.run
        note(kind="epoch.without", actor="server", run_id=run, silo_name=silo, detail=detail)

    def _weights(self, names: Iterable[str]) -> dict[str, float]:
        """What each silo may count at most, as far as it is known."""
        if (largest := largest_weight(self.spec)) is not None:
            return dict.fromkeys(names, largest)
        counts = {s.silo_name: s.num_examples for s in self.store.runs.silos(self.binding.run)}
        return {silo: float(count) for silo in names if (count := counts.get(silo))}

    def silos_for(self, weights_round: int, members: Sequence[Member]) -> tuple[Epoch, tuple[str, ...]]:
        """The epoch and the silos of a new step with the weights of a round. If silos may have signed a cohort for
        these weights already, they help to open that one only, among the same silos: those are it again, also who is
        away. RunPaused if they cannot be."""
        epoch = self.epoch_for(members)
        shown = self._shown(weights_round)
        if shown is None or self._is_given_up(shown):
            return epoch, tuple(m.name for m in members if m.name in epoch.names)
        if missing := sorted({*shown.silos} - epoch.names):
            raise RunPaused(
                f"the sum over {len(shown.cohort or ())} silos was to be opened for these weights, and no other may "
                f"be; {', '.join(missing)} must come back for it",
                "too_few_silos",
            )
        return epoch, tuple(shown.silos)

    def shown_before(self, step: int) -> SecureStep | None:
        """The newest step before this one that has a cohort, with the same weights."""
        row = self.store.secure.step(self.binding.run, step)
        shown = None if row is None else self._shown(_weights_round(row), step)
        return None if shown is None or self._is_given_up(shown) else shown

    def _is_given_up(self, shown: SecureStep) -> bool:
        """A silo of its cohort is revoked: another is tried, and the silos decide (`max_releases_per_model`)."""
        names = [name for name, _ in shown.cohort or ()]
        return len(self.asking.members(names)) < len(names)

    def _shown(self, weights_round: int, before: int | None = None) -> SecureStep | None:
        """In this run, and in those that it continues."""
        run: str | None = self.binding.run
        while run is not None:
            for row in reversed(self.store.secure.steps(run, (weights_round, weights_round + 1))):
                earlier = before is None or run != self.binding.run or row.step < before
                if earlier and row.cohort is not None and _weights_round(row) == weights_round:
                    return row
            first = min((row.number for row in self.store.rounds.list(run)), default=weights_round + 1)
            run = self.store.runs.get(run).parent_id if weights_round < first else None
        return None

    def open_step(self, request: StepRequest, weights: str, round_number: int) -> ServerStep:
        """A step on its terms, written down before any silo sees it. `weights`: the digest of what is sent."""
        assert request.masking is not None
        roster, strong = request.masking.roster, self.spec.secure_aggregation.strong
        terms = step_terms(request, self.spec, weights, self.shape)
        num_silos = len(terms.silos)
        self.store.secure.open_step(
            run_id=self.binding.run,
            step=terms.step,
            epoch=roster.epoch,
            round_number=round_number,
            closing=not isinstance(request, TrainRequest),
            silos=terms.silos,
            threshold=terms.threshold,
            min_cohort=self.minimum,
            colluders_tolerated=colluders_tolerated(num_silos, strong, self.minimum),
        )
        context = terms.context(roster_hash(self.binding, roster))
        return ServerStep(roster, context, terms, self.minimum)


def _weights_round(row: SecureStep) -> int:
    """Which round's weights a step was about: a round trains from those of the round before."""
    return row.round_number if row.closing else row.round_number - 1
