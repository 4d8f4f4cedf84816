"""Opening the sum of a masked step: its silos sign who is in it, then enough of them help to take the masks off.

Whoever has signed is asked to help as soon as enough have; so any silo may vanish at any moment, as long as `threshold`
of those in the sum stay. The cohort is written down before any silo sees it; everything else can be asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fedplat.reasons import Code, Reason
from fedplat.secagg.errors import RefusedError
from fedplat.secagg.messages import AgreeAnswer, Member, TrainPart, UnmaskAnswer
from fedplat.secagg.prg import Stream
from fedplat.secagg.server import ServerStep
from fedplat.wire.messages import AgreeReply, AgreeRequest, Reply, UnmaskReply, UnmaskRequest
from fedplat_server import registry
from fedplat_server.context import RoundLost
from fedplat_server.exchange import Given, Inquiry
from fedplat_server.secure import SecureRun
from fedplat_server.store import SecureStepFields
from fedplat_server.uploads import named

_BOTH_S = 0.05  # how long one question is listened for while another is open as well
Answer = TypeVar("Answer", bound=Reply)


@dataclass(frozen=True)
class Opened:
    """The masks that are left in the sum of the cohort's uploads."""

    cohort: tuple[str, ...]
    streams: Sequence[Stream]
    notes: SecureStepFields


def fixed_cohort(secure: SecureRun, step: int) -> tuple[Member, ...] | None:
    """The cohort of a step, if an earlier process has fixed it."""
    row = secure.store.secure.step(secure.binding.run, step)
    if row is None or row.cohort is None:
        return None
    return tuple(Member.model_validate({"name": name, "upload_id": upload_id}) for name, upload_id in row.cohort)


def fix_cohort(secure: SecureRun, step: ServerStep, parts: Mapping[str, TrainPart]) -> tuple[Member, ...]:
    """The cohort of these uploads, for ever; to be written down before any silo sees it. RoundLost if they are too few
    to be opened, or not all of those that silos may have signed for these weights: they sign no other cohort."""
    shown = secure.shown_before(step.terms.step)
    before = [name for name, _ in shown.cohort or ()] if shown else []
    try:
        return step.fix_cohort(parts, before)
    except RefusedError as error:
        gone = ", ".join(sorted({*before} - parts.keys()))
        text = f"; {gone} must come back, for a sum over others was to be opened with the same model, or be revoked"
        raise RoundLost(error.message + (text if gone else "")) from None


def named_uploads(cohort: Sequence[Member]) -> list[tuple[str, str]]:
    """The cohort as the store keeps it."""
    dumped = [member.model_dump(mode="json") for member in cohort]
    return [(member["name"], member["upload_id"]) for member in dumped]


@dataclass
class Opening:
    """One sum. `members`: the silos that are enrolled, of which those of the cohort are asked; `waiting` hears whom it
    waits for, and how many have helped."""

    secure: SecureRun
    step: ServerStep
    parts: Mapping[str, TrainPart]
    cohort: Sequence[Member]
    members: Sequence[registry.Member]
    waiting: Callable[[Sequence[str], int], None] = lambda _silos, _have: None
    signed: dict[str, AgreeAnswer] = field(default_factory=dict)
    answered: dict[str, UnmaskAnswer] = field(default_factory=dict)
    refused: dict[str, Reason] = field(default_factory=dict)
    num_confirmed: int | None = None
    _asked: set[str] = field(default_factory=set)

    def run(self) -> Opened:
        """Until enough have helped. RoundLost if too few do within the round's timeout."""
        begun_s = time.monotonic()
        agreed_s = 0.0
        with self.secure.asking.agree() as agreeing, self.secure.asking.unmask() as unmasking:
            self._ask_to_agree(agreeing)
            while len(self.answered) < self.step.terms.threshold:
                self._check(time.monotonic() - begun_s)
                self.waiting(sorted({*agreeing.waiting_for, *unmasking.waiting_for}), len(self.answered))
                for signature in _answers(agreeing, other_is_open=bool(unmasking.waiting_for)):
                    self._sign(signature)
                if len(self.signed) >= self.step.terms.threshold:
                    agreed_s = agreed_s or time.monotonic()
                    self._ask_to_unmask(unmasking)
                for help_ in _answers(unmasking, other_is_open=bool(agreeing.waiting_for)):
                    self._help(help_)
        streams = self._streams()
        notes = SecureStepFields(
            num_confirmed=self.num_confirmed or 0,
            seconds_agreeing=agreed_s - begun_s,
            seconds_unmasking=time.monotonic() - agreed_s,
        )
        return Opened(tuple(m.name for m in self.cohort), streams, notes)

    def _in_cohort(self) -> list[registry.Member]:
        names = {m.name for m in self.cohort}
        return [m for m in self.members if m.name in names]

    def _ask_to_agree(self, inquiry: Inquiry[AgreeReply]) -> None:
        for member in self._in_cohort():
            question = self.step.agree_question(member.name, self.cohort, self.parts)
            inquiry.ask([member], AgreeRequest(**self._about, question=question))

    def _ask_to_unmask(self, inquiry: Inquiry[UnmaskReply]) -> None:
        new = [m for m in self._in_cohort() if m.name in self.signed and m.name not in self._asked]
        if new:
            question = self.step.unmask_question(self.cohort, self.signed)
            inquiry.ask(new, UnmaskRequest(**self._about, question=question))
            self._asked |= {m.name for m in new}

    @property
    def _about(self) -> dict[str, str]:
        return {"run": self.secure.binding.run, "spec_hash": self.secure.spec.hash}

    def _sign(self, given: Given[AgreeReply]) -> None:
        body = given.parcel.body
        try:
            if given.failed is None and body.answer is not None:
                self.step.check_agreement(given.silo, self.cohort, body.answer)
                self.signed[given.silo] = body.answer
                known = body.num_confirmed
                self.num_confirmed = known if self.num_confirmed is None else min(self.num_confirmed, known)
                return
            self._refuse(given.silo, given.failed or Reason.of(Code.MESSAGE_INVALID))
        except RefusedError as error:
            self._refuse(given.silo, Reason.of_refusal(error.refusal))

    def _help(self, given: Given[UnmaskReply]) -> None:
        answer = given.parcel.body.answer
        try:
            if given.failed is None and answer is not None:
                self.step.check_answer(given.silo, self.cohort, self.parts, answer)
                self.answered[given.silo] = answer
                return
            self._refuse(given.silo, given.failed or Reason.of(Code.MESSAGE_INVALID))
        except RefusedError as error:
            self._refuse(given.silo, Reason.of_refusal(error.refusal))

    def _refuse(self, silo: str, reason: Reason) -> None:
        self.refused[silo] = reason
        if reason.code is Code.MASKING_STATE or reason.code is Code.NOT_JOINED:
            self.secure.renew()

    def _check(self, waited_s: float) -> None:
        """RoundLost if enough cannot help any more, or have not in time."""
        possible = {m.name for m in self._in_cohort()} - self.refused.keys()
        need = self.step.terms.threshold
        late = waited_s >= self.secure.spec.rounds.timeout_s
        if len(possible) >= need and not late:
            return
        silent = [silo for silo in possible if silo not in self.answered] if late else []
        why = named(self.refused, silent)
        have = f"{len(self.answered)} of at least {need} silos help to open the sum of step {self.step.terms.step}"
        raise RoundLost(f"{have} after {waited_s:.0f} s ({why})")

    def _streams(self) -> Sequence[Stream]:
        try:
            return self.step.streams(self.cohort, self.parts, self.answered)
        except RefusedError as error:
            raise RoundLost(error.message) from None


def _answers(inquiry: Inquiry[Answer], *, other_is_open: bool) -> list[Given[Answer]]:
    """What has come for one question; waits for it, but not long while the other is open too."""
    if not inquiry.waiting_for:
        return []
    return inquiry.answers(_BOTH_S if other_is_open else 1.0)
