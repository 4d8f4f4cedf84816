"""What has come in one round, and what became of each silo in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedplat.reasons import LATER, PASSING, Code, Reason
from fedplat.secagg.errors import Refusal
from fedplat.secagg.messages import TrainPart
from fedplat.spec.weighting import agreed_weight
from fedplat.wire.messages import TrainReply
from fedplat_server.context import RoundLost, RoundTask, RunContext
from fedplat_server.exchange import Given
from fedplat_server.recruiting import RunFailed, RunPaused
from fedplat_server.staging import Staged
from fedplat_server.store import RunSiloState, SiloRoundFields
from fedplat_server.transitions import SiloRoundState


@dataclass
class Uploads:
    """Updates that can be used, failures, and who is away for a while."""

    context: RunContext
    task: RoundTask
    updates: dict[str, Staged] = field(default_factory=dict)
    failed: dict[str, Reason] = field(default_factory=dict)
    away: dict[str, Reason] = field(default_factory=dict)

    @classmethod
    def staged(cls, context: RunContext, task: RoundTask) -> Uploads:
        """What the last process of this server had of this step already; what no row owns is removed."""
        uploads = cls(context, task)
        for silo in task.roster:
            staged = context.staging.get(silo, task.number, task.step)
            if staged is not None and staged.update.size_bytes == context.upload_bytes:
                uploads.updates[silo] = staged
        context.staging.keep_only(uploads.updates.keys(), coming=set(task.roster))
        for part in context.store.rounds.silo_rounds(context.run_id, task.number):
            if part.state is SiloRoundState.FAILED and part.silo_name in task.roster and part.reason_code:
                uploads.failed[part.silo_name] = Reason(code=Code(part.reason_code), words=_words(part.reason))
        return uploads

    def take(self, given: Given[TrainReply]) -> None:
        """File one silo's reply, on disk. What does not fit the question is a failure of that silo, not of the run."""
        reason = given.failed or (None if self._fits(given) else Reason.of(Code.MESSAGE_INVALID))
        if reason is None:
            self.updates[given.silo] = self.context.staging.put(given.silo, given.parcel)
            self.note(given.silo)
        elif reason.code in LATER:
            self.away[given.silo] = reason
        else:
            self.fail(given.silo, reason)
        if reason is not None and reason.code is Code.MASKING_STATE and self.context.secure is not None:
            self.context.secure.renew()

    def fail(self, silo: str, reason: Reason) -> None:
        """This round is lost for a silo."""
        self.updates.pop(silo, None)
        self.failed[silo] = reason
        self.note(silo)

    def note(self, silo: str) -> None:
        """Write down how a silo stands."""
        fields = SiloRoundFields(state=SiloRoundState.UPLOADED)
        if silo in self.failed:
            fields = absent(SiloRoundState.FAILED, self.failed[silo])
        self.context.store.rounds.silo_round(
            run_id=self.context.run_id, number=self.task.number, silo_name=silo, **fields
        )

    @property
    def parts(self) -> dict[str, TrainPart]:
        """What goes with each masked update."""
        return {silo: s.reply.masked for silo, s in self.updates.items() if s.reply.masked is not None}

    @property
    def minimum(self) -> int:
        """The fewest updates that this round ends with."""
        return self.context.smallest_cohort(len(self.task.roster))

    def check_enough(self, waited_s: float) -> None:
        """RunPaused or RunFailed if the minimum is not there; RoundLost if fresh keys are what is missing."""
        have = len(self.updates)
        if have >= self.minimum:
            return
        absent = self.away | self.failed
        late = waited_s >= self.context.spec.rounds.timeout_s
        why = named(absent, [s for s in self.missing() if s not in absent] if late else ())
        text = f"round {self.task.number} has updates of {have} of at least {self.minimum} silos"
        text = f"{text} after {waited_s:.0f} s ({why})"
        if any(map(_is_of_this_step, self.failed.values())):
            raise RoundLost(text)
        for_good = {silo for silo, reason in absent.items() if reason.code not in PASSING}
        away = {s.silo_name for s in self.context.store.runs.silos(self.context.run_id) if s.state is RunSiloState.AWAY}
        if len({*self.task.roster} - for_good | away) < self.minimum:
            raise RunFailed(text)
        raise RunPaused(text, "too_few_silos")

    def cohort(self) -> tuple[str, ...]:
        """Whose updates can be used, in roster order."""
        return tuple(silo for silo in self.task.roster if silo in self.updates)

    def missing(self) -> tuple[str, ...]:
        """Who has neither sent an update nor failed, in roster order."""
        return tuple(s for s in self.task.roster if s not in self.updates and s not in self.failed)

    def _fits(self, given: Given[TrainReply]) -> bool:
        body, task = given.parcel.body, self.task
        if (body.round, body.step) != (task.number, task.step):
            return False
        if (body.masked is None) is not (self.context.secure is None):
            return False
        agreed = agreed_weight(self.context.spec, given.silo)
        if body.masked is None and agreed is not None and body.weight != agreed:
            return False
        if body.buffer is None:
            return len(given.parcel.buffer) == self.context.upload_bytes
        if given.parcel.buffer:
            return False
        return self.context.road.accept(self.context.run_id, task.step, given.silo, body.buffer)


def absent(state: SiloRoundState, reason: Reason) -> SiloRoundFields:
    """How a silo that is not in the aggregate is kept."""
    return SiloRoundFields(state=state, reason_code=reason.code, reason=told(reason))


def told(reason: Reason) -> dict[str, object]:
    """A reason as it is kept: the sentence and the hint for people, the words for programs."""
    return {"text": str(reason), "hint": reason.hint, "words": dict(reason.words)}


def _is_of_this_step(reason: Reason) -> bool:
    """Whether a silo that failed for this reason may well take part in another step."""
    rules = {Refusal.UPDATE_CHANGED, Refusal.STEP_CHANGED, Refusal.CHECKS_DIFFER, Refusal.BUNDLE_INVALID}
    return reason.code is Code.MASKING_STATE or reason.words.get("rule") in rules


def _words(kept: Mapping[str, object] | None) -> dict[str, str | int]:
    """The words of a reason as `told` keeps them."""
    words = (kept or {}).get("words")
    return {k: v for k, v in words.items() if isinstance(v, str | int)} if isinstance(words, dict) else {}


def named(reasons: dict[str, Reason], silos: Sequence[str] = ()) -> str:
    """In one line; `silos` have not answered."""
    said = reasons | dict.fromkeys(silos, Reason.of(Code.NO_ANSWER))
    return "; ".join(f"{silo}: {reason}" for silo, reason in sorted(said.items()))
