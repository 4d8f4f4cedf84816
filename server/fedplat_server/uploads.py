"""What has come in one round, and what became of each silo in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedplat.reasons import LATER, Code, Reason
from fedplat.wire.messages import TrainReply
from fedplat_server.context import RoundTask, RunContext
from fedplat_server.exchange import Given
from fedplat_server.staging import Staged
from fedplat_server.store import SiloRoundFields
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
            if staged is not None and staged.update.size_bytes == context.buffer_bytes:
                uploads.updates[silo] = staged
        context.staging.keep_only(uploads.updates.keys(), coming=set(task.roster))
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
        if body.buffer is None:
            return len(given.parcel.buffer) == self.context.buffer_bytes
        if given.parcel.buffer:
            return False
        return self.context.road.accept(self.context.run_id, task.step, given.silo, body.buffer)


def absent(state: SiloRoundState, reason: Reason) -> SiloRoundFields:
    """How a silo that is not in the aggregate is kept."""
    return SiloRoundFields(state=state, reason_code=reason.code, reason=told(reason))


def told(reason: Reason) -> dict[str, object]:
    """A reason as it is kept: the sentence and the hint for people, the words for programs."""
    return {"text": str(reason), "hint": reason.hint, "words": dict(reason.words)}


def named(reasons: dict[str, Reason], silos: Sequence[str] = ()) -> str:
    """In one line; `silos` have not answered."""
    said = reasons | dict.fromkeys(silos, Reason.of(Code.NO_ANSWER))
    return "; ".join(f"{silo}: {reason}" for silo, reason in sorted(said.items()))
