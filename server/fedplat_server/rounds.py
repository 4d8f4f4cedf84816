"""One round: send the weights, wait for the updates, average, step, commit. Goes on with k of n after the timeout.

Whatever is killed: uploads are staged before SQL says that they are there, the cohort is fixed before it is averaged,
the checkpoint is on disk before one transaction commits the round. A restarted server goes on where the rows stop.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedplat.errors import LayoutError, WireError
from fedplat.metrics import MetricSums, add_sums, summarise
from fedplat.params import Layout, Vector
from fedplat.reasons import LATER, PASSING, Code, Reason
from fedplat.spec import RunSpec
from fedplat.wire.messages import EvaluateReply, EvaluateRequest, Timings, TrainReply, TrainRequest
from fedplat_server.aggregation import Update, UpdateError, update_norm, weighted_mean
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.exchange import Attendance, Given, Inquiry
from fedplat_server.recruiting import RunFailed, RunPaused
from fedplat_server.registry import Member
from fedplat_server.staging import Staging
from fedplat_server.stopping import kl_divergence
from fedplat_server.store import Evaluation, RunSiloState, SiloRoundFields, Split, Store
from fedplat_server.strategies import RunStrategy
from fedplat_server.transitions import RoundState, SiloRoundState


@dataclass(frozen=True)
class RunContext:
    """What does not change from round to round."""

    run_id: str
    spec: RunSpec
    layout: Layout
    minimum: int
    store: Store
    strategy: RunStrategy
    checkpoints: Checkpoints
    staging: Staging


@dataclass
class Uploads:
    """What has come in one round: updates that can be used, failures, and who is away for a while."""

    layout: Layout
    updates: dict[str, Given[TrainReply]] = field(default_factory=dict)
    failed: dict[str, Reason] = field(default_factory=dict)
    away: dict[str, Reason] = field(default_factory=dict)

    @classmethod
    def staged(cls, context: RunContext, task: RoundTask) -> Uploads:
        """What the last process of this server had of this step already; what no row owns is removed."""
        uploads = cls(context.layout)
        for silo in task.roster:
            parcel = context.staging.get(silo, task.number, task.step)
            if parcel is not None and len(parcel.buffer) == 4 * context.layout.size:
                uploads.updates[silo] = Given(silo, parcel)
        context.staging.keep_only(set(uploads.updates))
        return uploads

    def take(self, given: Given[TrainReply], round_number: int) -> None:
        """File one silo's reply. What does not fit the question is a failure of that silo, not of the run."""
        reason = given.failed
        if reason is None:
            try:
                given.parcel.vector(self.layout.size)
            except WireError:
                reason = Reason.of(Code.MESSAGE_INVALID)
            if given.parcel.body.round != round_number:
                reason = Reason.of(Code.MESSAGE_INVALID)
        if reason is None:
            self.updates[given.silo] = given
        elif reason.code in LATER:
            self.away[given.silo] = reason
        else:
            self.failed[given.silo] = reason

    def cohort(self, roster: Sequence[str]) -> tuple[str, ...]:
        """Whose updates can be used, in roster order."""
        return tuple(silo for silo in roster if silo in self.updates)


@dataclass(frozen=True)
class RoundTask:
    """One step at a round: its weights, and the silos that are asked, by name."""

    number: int
    step: int
    weights: Vector
    roster: tuple[str, ...]


@dataclass(frozen=True)
class RoundResult:
    """The new weights, and who was in the round."""

    weights: Vector
    cohort: tuple[str, ...]
    missed: tuple[str, ...]


def run_round(
    context: RunContext,
    task: RoundTask,
    members: Sequence[Member],
    inquiry: Inquiry[TrainReply],
    attendance: Attendance,
    waiting: Callable[[Sequence[str], int], None],
) -> RoundResult:
    """One round among `members`, or the rest of one that was begun. RunPaused if too few updates have come, RunFailed
    if no more can; `waiting` hears whom the round waits for."""
    begun = time.monotonic()
    number = task.number
    row = context.store.rounds.open(run_id=context.run_id, number=number, step=task.step, roster=task.roster)
    uploads = Uploads.staged(context, task)
    if row.state is RoundState.TRAINING:
        for silo in {*task.roster} - {m.name for m in members} - uploads.updates.keys():
            uploads.failed[silo] = Reason.of(Code.REVOKED)
            _note_upload(context, number, silo, uploads)
        missing = [m for m in members if m.name not in uploads.updates]
        if missing:
            inquiry.ask(missing, _question(context, task), task.weights)
        waited_s = _collect(context, task, uploads, inquiry, attendance, waiting)
        mean = _fix_cohort(context, task, uploads, waited_s)
    else:
        mean = _fixed_cohort(context, task, row.cohort, uploads)
    new = context.strategy.step(number, task.weights, mean.vector, mean.total_weight)
    saved = context.checkpoints.save(number, new, context.layout, context.strategy.state())
    parts = [uploads.updates[silo].parcel.body for silo in mean.cohort]
    evaluations = [*_evaluations(parts, number, mean.divergence)]
    context.store.rounds.commit(
        run_id=context.run_id,
        number=number,
        cohort=mean.cohort,
        weights_path=str(saved.path),
        weights_sha256=saved.sha256,
        evaluations=evaluations,
        silo_rounds=_silo_rounds(context, uploads, task.roster),
        update_norm=update_norm(mean.vector),
        seconds=time.monotonic() - begun,
    )
    for found in evaluations:
        sent = [p.silo for p in parts if (p.evaluated if found.split is Split.TEST else p.trained) is not None]
        _note_left_out(context, found, sent)
    _note_tests(context, number - 1, [(p.silo, p.evaluated) for p in parts if p.evaluated and p.share_metrics])
    context.staging.clear()
    missed = tuple(s for s in task.roster if s not in mean.cohort and s not in uploads.failed)
    return RoundResult(new, mean.cohort, missed)


def _question(context: RunContext, task: RoundTask) -> TrainRequest:
    config = context.strategy.configure(task.number)
    return TrainRequest(
        run=context.run_id,
        spec_hash=context.spec.hash,
        round=task.number,
        step=task.step,
        roster=task.roster,
        evaluate=(task.number - 1) % context.spec.evaluation.every == 0,
        proximal_mu=float(str(config.get("proximal-mu", 0.0))),
    )


def _collect(
    context: RunContext,
    task: RoundTask,
    uploads: Uploads,
    inquiry: Inquiry[TrainReply],
    attendance: Attendance,
    waiting: Callable[[Sequence[str], int], None],
) -> float:
    """Until all have answered, or the timeout has passed with the minimum there; returns the seconds that it took. Who
    is away for a while is waited for below the minimum only, and asked again when it is back."""
    for silo in uploads.updates:
        _note_upload(context, task.number, silo, uploads)
    begun = time.monotonic()
    timeout_s, patience_s = context.spec.rounds.timeout_s, context.spec.silos.wait_s
    while True:
        waited_s = time.monotonic() - begun
        enough = len(uploads.updates) >= context.minimum
        open_silos = inquiry.waiting_for if enough else (*inquiry.waiting_for, *uploads.away)
        hopeless = len(uploads.updates) + len(open_silos) < context.minimum
        if not open_silos or hopeless or waited_s >= (timeout_s if enough else max(timeout_s, patience_s)):
            return waited_s
        for given in inquiry.answers(min(1.0, max(0.0, timeout_s - waited_s) or 1.0)):
            uploads.take(given, task.number)
            if given.silo in uploads.away:
                attendance.lost(given.silo, uploads.away[given.silo])
                continue
            if given.silo in uploads.updates:
                context.staging.put(given.silo, given.parcel)
            _note_upload(context, task.number, given.silo, uploads)
        if uploads.away and (back := [m for m in attendance.present() if m.name in uploads.away]):
            uploads.away = {s: r for s, r in uploads.away.items() if s not in {m.name for m in back}}
            inquiry.ask(back, _question(context, task), task.weights)
        waiting((*inquiry.waiting_for, *uploads.away), len(uploads.updates))


def _check_enough(context: RunContext, task: RoundTask, uploads: Uploads, waited_s: float) -> None:
    """RunPaused or RunFailed if the minimum is not there."""
    have = len(uploads.updates)
    if have >= context.minimum:
        return
    missing = uploads.away | uploads.failed
    silent = [s for s in task.roster if s not in uploads.updates and s not in missing]
    if waited_s >= context.spec.rounds.timeout_s:
        missing |= dict.fromkeys(silent, Reason.of(Code.NO_ANSWER))
    why = "; ".join(f"{silo}: {reason}" for silo, reason in sorted(missing.items()))
    text = f"round {task.number} has updates of {have} of at least {context.minimum} silos after {waited_s:.0f} s"
    for_good = {silo for silo, reason in missing.items() if reason.code not in PASSING}
    away = {s.silo_name for s in context.store.runs.silos(context.run_id) if s.state is RunSiloState.AWAY}
    if len({*task.roster} - for_good | away) < context.minimum:
        raise RunFailed(f"{text} ({why})")
    raise RunPaused(f"{text} ({why})", "too_few_silos")


def _note_upload(context: RunContext, number: int, silo: str, uploads: Uploads) -> None:
    note = context.store.rounds.silo_round
    reason = uploads.failed.get(silo)
    if reason is None:
        note(run_id=context.run_id, number=number, silo_name=silo, state=SiloRoundState.UPLOADED)
    else:
        note(run_id=context.run_id, number=number, silo_name=silo, **_absent(SiloRoundState.FAILED, reason))


def _absent(state: SiloRoundState, reason: Reason) -> SiloRoundFields:
    return SiloRoundFields(state=state, reason_code=reason.code, reason=told(reason))


def told(reason: Reason) -> dict[str, object]:
    """A reason as it is kept: the sentence and the hint for people, the words for programs."""
    return {"text": str(reason), "hint": reason.hint, "words": dict(reason.words)}


@dataclass(frozen=True)
class _Mean:
    """The mean update of a cohort. `divergence`: |sum w u| / sum w |u|, 1 where all silos pull the same way."""

    cohort: tuple[str, ...]
    vector: Vector
    total_weight: float
    divergence: float | None


def _fix_cohort(context: RunContext, task: RoundTask, uploads: Uploads, waited_s: float) -> _Mean:
    """The cohort and its mean, written down before anything follows from it. An update that is not finite, or too
    large, costs that silo its round, not the run. RunPaused or RunFailed if the minimum is not there."""
    while True:
        _check_enough(context, task, uploads, waited_s)
        cohort = uploads.cohort(task.roster)
        try:
            mean = _mean(context, cohort, uploads)
            break
        except UpdateError as error:
            code = Code.UPDATE_TOO_LARGE if isinstance(error, _TooLarge) else Code.UPDATE_NOT_FINITE
            del uploads.updates[error.silo]
            uploads.failed[error.silo] = Reason.of(code)
            _note_upload(context, task.number, error.silo, uploads)
    context.store.rounds.fix_cohort(run_id=context.run_id, number=task.number, cohort=cohort)
    return mean


def _fixed_cohort(context: RunContext, task: RoundTask, cohort: Sequence[str], uploads: Uploads) -> _Mean:
    """The mean of a cohort that was fixed before the server was restarted. RoundLost if an upload is gone."""
    if missing := [silo for silo in cohort if silo not in uploads.updates]:
        raise RoundLost(f"the staged updates of {', '.join(missing)} are missing or damaged")
    return _mean(context, tuple(cohort), uploads)


class RoundLost(Exception):
    """A round that has to be begun again, with a new step."""


class _TooLarge(UpdateError):
    """The largest update of a mean that is above the spec's limit."""


def _mean(context: RunContext, cohort: tuple[str, ...], uploads: Uploads) -> _Mean:
    updates = [_update(uploads.updates[silo], context.layout.size) for silo in cohort]
    vector, total = weighted_mean(updates)
    norms = [u.weight * update_norm(u.vector) for u in updates]
    norm, limit = update_norm(vector), context.spec.stop.max_update_norm
    if limit is not None and norm > limit:
        raise _TooLarge(max(zip(norms, cohort, strict=True))[1], f"makes the mean's norm {norm:.3g}")
    spread = sum(norms) / total
    return _Mean(cohort, vector, total, norm / spread if spread else None)


def _update(given: Given[TrainReply], size: int) -> Update:
    return Update(given.silo, given.parcel.body.weight, given.parcel.vector(size))


def _evaluations(parts: Sequence[TrainReply], number: int, divergence: float | None) -> Iterable[Evaluation]:
    """Metrics belong to the weights that they were measured on: tests in round r are of the weights of r - 1."""
    tested = [(p.silo, p.evaluated) for p in parts if p.evaluated is not None]
    if tested:
        shown = [p.evaluated for p in parts if p.evaluated is not None and p.share_metrics]
        yield evaluation(tested, number - 1, Split.TEST, {"kl_divergence": kl_divergence(shown)})
    trained = [(p.silo, p.trained) for p in parts if p.trained is not None]
    if trained:
        yield evaluation(trained, number, Split.TRAIN, {"divergence": divergence})


def evaluation(
    sums: Sequence[tuple[str, MetricSums]],
    round_number: int,
    split: Split,
    further: Mapping[str, float | None] | None = None,
) -> Evaluation:
    """The federation's figures over the silos that sent sums of the usual shape; a silo of another shape (a wrong or
    hostile one) is not among `silos`."""
    usual = Counter(s.shape for _, s in sums).most_common(1)[0][0]
    sums = [(silo, s) for silo, s in sums if s.shape == usual]
    total = add_sums(s for _, s in sums)
    figures = summarise(total) | {k: v for k, v in (further or {}).items() if v is not None}
    return Evaluation(
        round_number=round_number,
        split=split,
        silos=[silo for silo, _ in sums],
        num_examples=total.num_examples,
        loss=figures.pop("loss", None),
        metrics=figures,
    )


def _note_left_out(context: RunContext, found: Evaluation, sent: Sequence[str]) -> None:
    why = "its sums have another shape than the others'"
    detail = {"round": found.round_number, "split": found.split, "why": why}
    note, kind = context.store.events.append, "metrics.left_out"
    for silo in sorted({*sent} - {*found.silos}):
        note(kind=kind, actor="server", run_id=context.run_id, silo_name=silo, detail=detail)


def _silo_rounds(context: RunContext, uploads: Uploads, roster: Sequence[str]) -> dict[str, SiloRoundFields]:
    missed = (s for s in roster if s not in uploads.updates and s not in uploads.failed)
    silent = Reason.of(Code.NO_ANSWER)
    return {silo: _silo_round(context, given) for silo, given in uploads.updates.items()} | {
        silo: _absent(SiloRoundState.MISSED, uploads.away.get(silo, silent)) for silo in missed
    }


def _silo_round(context: RunContext, given: Given[TrainReply]) -> SiloRoundFields:
    body = given.parcel.body
    fields = timings_to_fields(body.timings)
    fields["num_examples"] = body.num_examples
    fields["bytes_up"] = len(given.parcel.buffer)
    fields["bytes_down"] = context.layout.size * 4
    if body.share_metrics and body.trained is not None:
        fields["metrics"] = {f"train_{k}": v for k, v in summarise(body.trained).items()}
    return fields


def _note_tests(context: RunContext, number: int, tested: Sequence[tuple[str, MetricSums]]) -> None:
    """Keep the test figures of silos that share them, with the round whose weights they measured."""
    parts = {p.silo_name: p for p in context.store.rounds.silo_rounds(context.run_id, number)} if tested else {}
    for silo, sums in tested:
        if silo in parts:
            figures = {f"test_{k}": v for k, v in summarise(sums).items()}
            metrics = (parts[silo].metrics or {}) | figures
            context.store.rounds.silo_round(run_id=context.run_id, number=number, silo_name=silo, metrics=metrics)


def timings_to_fields(timings: Timings) -> SiloRoundFields:
    """Where a silo's time went, as the store calls it."""
    return SiloRoundFields(
        seconds_waiting=timings.waiting_s,
        seconds_training=timings.training_s,
        seconds_evaluating=timings.evaluating_s,
        seconds_communicating=timings.communicating_s,
        samples_per_second=timings.samples_per_s,
        busy_share=timings.busy_share,
        restarts=timings.restarts,
    )


def closing_evaluation(
    context: RunContext, number: int, weights: Vector, members: Sequence[Member], inquiry: Inquiry[EvaluateReply]
) -> None:
    """Measure the last weights and write it down."""
    question = EvaluateRequest(run=context.run_id, spec_hash=context.spec.hash, round=number)
    inquiry.ask(list(members), question, weights)
    deadline = time.monotonic() + context.spec.rounds.timeout_s
    replies: dict[str, EvaluateReply] = {}
    while inquiry.waiting_for and (left_s := deadline - time.monotonic()) > 0:
        replies |= {g.silo: g.parcel.body for g in inquiry.answers(min(1.0, left_s)) if g.failed is None}
    sums = [(silo, replies[silo].evaluated) for silo in sorted(replies)]
    shared = [(silo, s) for silo, s in sums if s is not None]
    try:
        if shared:
            found = evaluation(shared, number, Split.TEST)
            context.store.rounds.record_evaluation(run_id=context.run_id, evaluation=found)
            _note_left_out(context, found, [silo for silo, _ in shared])
    except (WireError, LayoutError) as error:
        raise RunFailed(f"the closing evaluation makes no sense: {error.message}") from None
    _note_tests(context, number, [(silo, s) for silo, s in shared if replies[silo].share_metrics])
