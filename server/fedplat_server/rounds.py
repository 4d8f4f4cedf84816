"""One round: send the weights, wait for the updates, average, step, commit. Goes on with k of n after the timeout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fedplat.errors import LayoutError, WireError
from fedplat.metrics import MetricSums, add_sums, summarise
from fedplat.params import Layout, Vector
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec
from fedplat.wire.messages import EvaluateReply, EvaluateRequest, Timings, TrainReply, TrainRequest
from fedplat_server.aggregation import Update, UpdateError, update_norm, weighted_mean
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.exchange import Given, Inquiry
from fedplat_server.recruiting import RunFailed
from fedplat_server.registry import Member
from fedplat_server.store import Evaluation, SiloRoundFields, Split, Store
from fedplat_server.strategies import RunStrategy
from fedplat_server.transitions import SiloRoundState


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


@dataclass
class Uploads:
    """What has come in one round: updates that can be used, and failures."""

    layout: Layout
    updates: dict[str, Given[TrainReply]] = field(default_factory=dict)
    failed: dict[str, Reason] = field(default_factory=dict)

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
        else:
            self.failed[given.silo] = reason

    def cohort(self, roster: Sequence[str]) -> tuple[str, ...]:
        """Whose updates can be used, in roster order."""
        return tuple(silo for silo in roster if silo in self.updates)


@dataclass(frozen=True)
class RoundResult:
    """The new weights, and who was in the round."""

    weights: Vector
    cohort: tuple[str, ...]
    missed: tuple[str, ...]


def run_round(
    context: RunContext,
    number: int,
    step: int,
    weights: Vector,
    members: Sequence[Member],
    inquiry: Inquiry[TrainReply],
    waiting: Callable[[Sequence[str], int], None],
) -> RoundResult:
    """One round among `members`. RunFailed if too few updates can come; `waiting` hears whom the round waits for."""
    begun = time.monotonic()
    roster = tuple(sorted(m.name for m in members))
    context.store.rounds.open(run_id=context.run_id, number=number, step=step, roster=roster)
    question = _question(context, number, step, roster)
    inquiry.ask(list(members), question, weights)
    uploads = _collect(context, number, inquiry, waiting)
    new, cohort, norm = _aggregate(context, number, weights, roster, uploads)
    saved = context.checkpoints.save(number, new, context.layout, context.strategy.state())
    parts = [uploads.updates[silo].parcel.body for silo in cohort]
    context.store.rounds.commit(
        run_id=context.run_id,
        number=number,
        cohort=cohort,
        weights_path=str(saved.path),
        weights_sha256=saved.sha256,
        evaluations=[*_evaluations(parts, number)],
        silo_rounds=_silo_rounds(context, uploads, roster),
        update_norm=norm,
        seconds=time.monotonic() - begun,
    )
    _note_tests(context, number - 1, [(p.silo, p.evaluated) for p in parts if p.evaluated and p.share_metrics])
    context.checkpoints.prune(1)
    return RoundResult(new, cohort, tuple(s for s in roster if s not in cohort and s not in uploads.failed))


def _question(context: RunContext, number: int, step: int, roster: tuple[str, ...]) -> TrainRequest:
    config = context.strategy.configure(number)
    return TrainRequest(
        run=context.run_id,
        spec_hash=context.spec.hash,
        round=number,
        step=step,
        roster=roster,
        evaluate=(number - 1) % context.spec.evaluation.every == 0,
        proximal_mu=float(str(config.get("proximal-mu", 0.0))),
    )


def _collect(
    context: RunContext,
    number: int,
    inquiry: Inquiry[TrainReply],
    waiting: Callable[[Sequence[str], int], None],
) -> Uploads:
    """Until all have answered, or the timeout has passed with the minimum there."""
    uploads = Uploads(context.layout)
    begun = time.monotonic()
    timeout_s, patience_s = context.spec.rounds.timeout_s, context.spec.silos.wait_s
    while inquiry.waiting_for:
        waited_s = time.monotonic() - begun
        enough = len(uploads.updates) >= context.minimum
        if waited_s >= (timeout_s if enough else max(timeout_s, patience_s)):
            break
        if not enough and len(uploads.updates) + len(inquiry.waiting_for) < context.minimum:
            break
        for given in inquiry.answers(min(1.0, max(0.0, timeout_s - waited_s) or 1.0)):
            uploads.take(given, number)
            _note_upload(context, number, given.silo, uploads)
        waiting(inquiry.waiting_for, len(uploads.updates))
    return uploads


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


def _aggregate(
    context: RunContext, number: int, weights: Vector, roster: Sequence[str], uploads: Uploads
) -> tuple[Vector, tuple[str, ...], float]:
    """The next weights, the cohort and the norm of the mean update. An update that is not finite costs that silo
    its round, not the run."""
    while True:
        cohort = uploads.cohort(roster)
        if len(cohort) < context.minimum:
            raise RunFailed(_too_few(context, number, cohort, uploads))
        updates = [_update(uploads.updates[silo], context.layout.size) for silo in cohort]
        try:
            mean, total = weighted_mean(updates)
            break
        except UpdateError as error:
            del uploads.updates[error.silo]
            uploads.failed[error.silo] = Reason.of(Code.UPDATE_NOT_FINITE)
            _note_upload(context, number, error.silo, uploads)
    context.store.rounds.fix_cohort(run_id=context.run_id, number=number, cohort=cohort)
    return context.strategy.step(number, weights, mean, total), cohort, update_norm(mean)


def _update(given: Given[TrainReply], size: int) -> Update:
    return Update(given.silo, given.parcel.body.weight, given.parcel.vector(size))


def _too_few(context: RunContext, number: int, cohort: Sequence[str], uploads: Uploads) -> str:
    why = "; ".join(f"{silo}: {reason}" for silo, reason in sorted(uploads.failed.items()))
    have = f"round {number} has updates of {len(cohort)} of at least {context.minimum} silos"
    return f"{have} ({why or 'no answer from the others'})"


def _evaluations(parts: Sequence[TrainReply], number: int) -> Iterable[Evaluation]:
    """Metrics belong to the weights that they were measured on: tests in round r are of the weights of r - 1."""
    tested = [(p.silo, p.evaluated) for p in parts if p.evaluated is not None]
    if tested:
        yield evaluation(tested, number - 1, Split.TEST)
    trained = [(p.silo, p.trained) for p in parts if p.trained is not None]
    if trained:
        yield evaluation(trained, number, Split.TRAIN)


def evaluation(sums: Sequence[tuple[str, MetricSums]], round_number: int, split: Split) -> Evaluation:
    """The federation's figures over the silos that sent sums."""
    total = add_sums(s for _, s in sums)
    figures = summarise(total)
    return Evaluation(
        round_number=round_number,
        split=split,
        silos=[silo for silo, _ in sums],
        num_examples=total.num_examples,
        loss=figures.pop("loss", None),
        metrics=figures,
    )


def _silo_rounds(context: RunContext, uploads: Uploads, roster: Sequence[str]) -> dict[str, SiloRoundFields]:
    missed = _absent(SiloRoundState.MISSED, Reason.of(Code.NO_ANSWER))
    return {
        silo: _silo_round(context, uploads.updates[silo]) if silo in uploads.updates else missed
        for silo in roster
        if silo not in uploads.failed
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
    except (WireError, LayoutError) as error:
        raise RunFailed(f"the closing evaluation makes no sense: {error.message}") from None
    _note_tests(context, number, [(silo, s) for silo, s in shared if replies[silo].share_metrics])
