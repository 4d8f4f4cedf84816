"""One round: send the weights, wait for the updates, average, step, commit. Goes on with k of n after the timeout.

Whatever is killed: uploads are staged before SQL says that they are there, the cohort is fixed before the model that
follows from it is there, the checkpoint is on disk before one transaction commits the round. A restarted server goes on
where the rows stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fedplat.reasons import Code, Reason
from fedplat.wire.messages import TrainReply, TrainRequest
from fedplat_server.aggregation import UpdateError
from fedplat_server.checkpoints import Checkpoint
from fedplat_server.context import RoundTask, RunContext
from fedplat_server.exchange import Attendance, Inquiry
from fedplat_server.figures import evaluations, note_left_out, note_tests, silo_rounds
from fedplat_server.maskedround import MaskedRound
from fedplat_server.outgoing import expect_upload, outgoing
from fedplat_server.registry import Member
from fedplat_server.stepping import Stepped, UpdateTooLarge, plain_mean, step, step_again
from fedplat_server.store import Split
from fedplat_server.transitions import RoundState
from fedplat_server.uploads import Uploads

Waiting = Callable[[Sequence[str], int], None]


@dataclass(frozen=True)
class RoundResult:
    """The new model, and who was in the round."""

    model: Checkpoint
    cohort: tuple[str, ...]
    missed: tuple[str, ...]


def run_round(
    context: RunContext,
    task: RoundTask,
    members: Sequence[Member],
    inquiry: Inquiry[TrainReply],
    attendance: Attendance,
    waiting: Waiting,
) -> RoundResult:
    """One round among `members`, or the rest of one that was begun. RunPaused if too few updates have come, RunFailed
    if no more can; `waiting` hears whom the round waits for."""
    row = context.store.rounds.open(run_id=context.run_id, number=task.number, step=task.step, roster=task.roster)
    uploads = Uploads.staged(context, task)
    collecting = _Collecting(context, task, uploads, inquiry, attendance, waiting)
    try:
        if context.secure is not None:
            masked = MaskedRound(context, context.secure, task, uploads, _question(context, task), waiting)
            stepped = masked.step(lambda: collecting.run(members), members)
        elif row.state is RoundState.TRAINING:
            stepped = _step(context, task, uploads, collecting.run(members))
        else:
            stepped = step_again(context, task, row.cohort, uploads)
    finally:
        context.road.close(context.run_id)
    # from the row, not from this process: a server that was killed has worked on it too
    _commit(context, task, uploads, stepped, (datetime.now(UTC) - row.started_at).total_seconds())
    context.staging.clear()
    missed = tuple(s for s in task.roster if s not in stepped.cohort and s not in uploads.failed)
    return RoundResult(stepped.model, stepped.cohort, missed)


@dataclass(frozen=True)
class _Collecting:
    """Asks, and waits until all have answered, or the timeout has passed with the minimum there. A transfer that moves,
    however slowly, is waited for; who is away for a while is waited for below the minimum only, and asked again when
    it is back."""

    context: RunContext
    task: RoundTask
    uploads: Uploads
    inquiry: Inquiry[TrainReply]
    attendance: Attendance
    waiting: Waiting

    def run(self, members: Sequence[Member]) -> float:
        """Returns the seconds that it took."""
        for silo in self.uploads.updates:
            self.uploads.note(silo)
        for silo in {*self.task.roster} - {m.name for m in members} - self.uploads.updates.keys():
            self.uploads.fail(silo, Reason.of(Code.REVOKED))
        settled = self.uploads.updates.keys() | self.uploads.failed.keys()
        self._ask([m for m in members if m.name not in settled])
        begun_s = time.monotonic()
        while not self._is_done(begun_s):
            self.context.road.check(self.context.run_id)
            left_s = begun_s + self.context.spec.rounds.timeout_s - time.monotonic()
            self._take(min(1.0, max(0.0, left_s) or 1.0))
            self._ask_again()
            self.waiting((*self.inquiry.waiting_for, *self.uploads.away), len(self.uploads.updates))
        return time.monotonic() - begun_s

    def _ask(self, members: Sequence[Member]) -> None:
        """The question, with the weights in it or on the road, and the road open for large updates."""
        if not members:
            return
        weights = outgoing(self.context, self.task.model, members)
        for member in members:
            expect_upload(self.context, self.task.step, member.name, self.context.upload_bytes)
        ledgers = self.context.ledgers.heads(members) if self.context.ledgers is not None else {}
        more = {"buffer": weights.ref, "ledgers": ledgers}
        question = _question(self.context, self.task).model_copy(update=more)
        self.inquiry.ask(members, question, weights.inline)

    def _ask_again(self) -> None:
        away = self.uploads.away
        back = [m for m in self.attendance.present() if m.name in away] if away else []
        for member in back:
            del away[member.name]
        self._ask(back)

    def _take(self, timeout_s: float) -> None:
        for given in self.inquiry.answers(timeout_s):
            self.uploads.take(given)
            if given.silo in self.uploads.away:
                self.attendance.lost(given.silo, self.uploads.away[given.silo])

    def _is_done(self, begun_s: float) -> bool:
        have, minimum = len(self.uploads.updates), self.uploads.minimum
        enough = have >= minimum
        open_silos = self.inquiry.waiting_for if enough else (*self.inquiry.waiting_for, *self.uploads.away)
        if not open_silos or have + len(open_silos) < minimum:
            return True
        timeout_s = self.context.spec.rounds.timeout_s
        limit_s = timeout_s if enough else max(timeout_s, self.context.spec.silos.wait_s)
        run, deadline_s = self.context.run_id, self.context.road.deadline_s
        return all(time.monotonic() >= deadline_s(run, silo, begun_s, limit_s) for silo in open_silos)


def _question(context: RunContext, task: RoundTask) -> TrainRequest:
    config = context.strategy.configure(task.number)
    return TrainRequest(
        run=context.run_id,
        spec_hash=context.spec.hash,
        round=task.number,
        step=task.step,
        roster=task.roster,
        evaluate=(task.number - 1) % context.spec.evaluation.every == 0,
        masking=None if task.epoch is None else task.epoch.masking(),
        proximal_mu=float(str(config.get("proximal-mu", 0.0))),
    )


def _step(context: RunContext, task: RoundTask, uploads: Uploads, waited_s: float) -> Stepped:
    """The step with whatever can be used. An update that is not finite, or too large, costs that silo its round, not
    the run. RunPaused or RunFailed if the minimum is not there."""
    while True:
        uploads.check_enough(waited_s)
        cohort = uploads.cohort()
        try:
            return step(context, task, cohort, plain_mean(context, cohort, uploads))
        except UpdateError as error:
            code = Code.UPDATE_TOO_LARGE if isinstance(error, UpdateTooLarge) else Code.UPDATE_NOT_FINITE
            uploads.fail(error.silo, Reason.of(code))


def _commit(context: RunContext, task: RoundTask, uploads: Uploads, stepped: Stepped, seconds: float) -> None:
    """One transaction, then what is nice to know."""
    parts = [uploads.updates[silo].reply for silo in stepped.cohort]
    found = [*evaluations(parts, task.number, stepped)]
    context.store.rounds.commit(
        run_id=context.run_id,
        number=task.number,
        cohort=stepped.cohort,
        weights_path=str(stepped.model.path),
        weights_sha256=stepped.model.sha256,
        evaluations=found,
        silo_rounds=silo_rounds(context, uploads),
        update_norm=stepped.norm,
        seconds=seconds,
    )
    for one in found:
        sent = [p.silo for p in parts if (p.evaluated if one.split is Split.TEST else p.trained) is not None]
        note_left_out(context, one, sent)
    note_tests(context, task.number - 1, [(p.silo, p.evaluated) for p in parts if p.evaluated and p.share_metrics])
