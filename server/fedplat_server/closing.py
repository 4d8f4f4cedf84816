"""The closing evaluation: the last round's model is measured too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fedplat.bufferfiles import Region
from fedplat.errors import LayoutError, WireError
from fedplat.reasons import Code
from fedplat.secagg.errors import RefusedError
from fedplat.secagg.figures import Figures
from fedplat.secagg.messages import TrainPart
from fedplat.secagg.server import ServerStep
from fedplat.wire.messages import EvaluateReply, EvaluateRequest
from fedplat_server.aggregation.masked import WORD_BYTES, sum_of
from fedplat_server.checkpoints import Checkpoint
from fedplat_server.context import RoundLost, RunContext
from fedplat_server.exchange import Given, Inquiry
from fedplat_server.figures import evaluation, masked_evaluations, note_left_out, note_tests
from fedplat_server.opening import Opening, fix_cohort, named_uploads
from fedplat_server.outgoing import digest_of, expect_upload, outgoing
from fedplat_server.recruiting import RunFailed, RunPaused
from fedplat_server.registry import Member
from fedplat_server.secure import SecureRun
from fedplat_server.store import Split

MAX_ATTEMPTS = 2


def closing_evaluation(
    context: RunContext, model: Checkpoint, members: Sequence[Member], inquiry: Inquiry[EvaluateReply]
) -> None:
    """Measure the last weights and write it down. RunFailed if the silos' figures make no sense."""
    number = model.manifest.round
    question = EvaluateRequest(run=context.run_id, spec_hash=context.spec.hash, round=number)
    replies = {silo: reply for silo, (reply, _) in _ask(context, model, members, question, inquiry).items()}
    shared = [(silo, s) for silo in sorted(replies) if (s := replies[silo].evaluated) is not None]
    try:
        if shared:
            found = evaluation(shared, number, Split.TEST)
            context.store.rounds.record_evaluation(run_id=context.run_id, evaluation=found)
            note_left_out(context, found, [silo for silo, _ in shared])
    except (WireError, LayoutError) as error:
        raise RunFailed(f"the closing evaluation makes no sense: {error.message}") from None
    note_tests(context, number, [(silo, s) for silo, s in shared if replies[silo].share_metrics])


def masked_evaluation(
    context: RunContext,
    secure: SecureRun,
    model: Checkpoint,
    members: Sequence[Member],
    make_inquiry: Callable[[], Inquiry[EvaluateReply]],
) -> None:
    """The same with secure aggregation, a step of its own. Without enough silos the last weights stay unmeasured, and
    an event says why."""
    number = model.manifest.round
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            with make_inquiry() as inquiry:
                found, cohort = _masked_figures(context, secure, model, members, inquiry)
            for one in masked_evaluations(found, number + 1, cohort):
                context.store.rounds.record_evaluation(run_id=context.run_id, evaluation=one)
            return
        except (RoundLost, RunPaused, RefusedError, WireError) as error:
            detail = {"round": number, "attempt": attempt, "why": str(error)}
            note = context.store.events.append
            note(kind="evaluation.failed", actor="server", run_id=context.run_id, detail=detail)


def _masked_figures(
    context: RunContext,
    secure: SecureRun,
    model: Checkpoint,
    members: Sequence[Member],
    inquiry: Inquiry[EvaluateReply],
) -> tuple[Figures, tuple[str, ...]]:
    """The figures of all silos together, and whose they are."""
    epoch, roster = secure.silos_for(model.manifest.round, members)
    members = [m for m in members if m.name in roster]
    question = EvaluateRequest(
        run=context.run_id,
        spec_hash=context.spec.hash,
        round=model.manifest.round,
        step=context.store.secure.next_step(context.run_id),
        roster=roster,
        masking=epoch.masking(),
    )
    opened = secure.open_step(question, digest_of(context, model), model.manifest.round)
    size_bytes = opened.terms.vector.length * WORD_BYTES
    given = {
        silo: (reply.masked, parcel)
        for silo, (reply, parcel) in _ask(context, model, members, question, inquiry).items()
        if reply.masked is not None and len(parcel) == size_bytes
    }
    parts = {silo: part for silo, (part, _) in given.items() if _is_complete(opened, silo, part)}
    for silo in opened.left_out(parts):
        del parts[silo]
    cohort = fix_cohort(secure, opened, parts)
    note, run, step = context.store.secure, context.run_id, question.step
    note.fix_cohort(run_id=run, step=step, cohort=named_uploads(cohort))
    found = Opening(secure, opened, parts, cohort, members).run()
    note.note(run_id=run, step=step, **found.notes)
    total = sum_of([given[silo][1] for silo in found.cohort], found.streams)
    return secure.figures.decode(total, len(found.cohort)), found.cohort


def _is_complete(opened: ServerStep, silo: str, part: TrainPart) -> bool:
    try:
        opened.check_upload(silo, part)
    except RefusedError:
        return False
    return True


def _ask(
    context: RunContext,
    model: Checkpoint,
    members: Sequence[Member],
    question: EvaluateRequest,
    inquiry: Inquiry[EvaluateReply],
) -> dict[str, tuple[EvaluateReply, bytes]]:
    """The answers that come before the timeout, or later by a line that moves, each with its buffer."""
    begun_s = time.monotonic()
    replies: dict[str, tuple[EvaluateReply, bytes]] = {}
    context.staging.clear()  # a killed server may have left weights, whole or not
    try:
        weights = outgoing(context, model, members)
        if context.secure is not None:
            for member in members:  # figures of very many classes
                expect_upload(context, question.step, member.name, context.secure.figures.length * WORD_BYTES)
        inquiry.ask(members, question.model_copy(update={"buffer": weights.ref}), weights.inline)
        while _is_due(context, inquiry.waiting_for, begun_s):
            for given in inquiry.answers(1.0):
                if given.failed is None:
                    replies[given.silo] = given.parcel.body, _buffer(context, question.step, given)
                elif given.failed.code is Code.MASKING_STATE and context.secure is not None:
                    context.secure.renew()
    finally:
        context.road.close(context.run_id)
        context.staging.clear()
    return replies


def _buffer(context: RunContext, step: int, given: Given[EvaluateReply]) -> bytes:
    """What came with an answer, in its message or by the road; nothing if it did not come."""
    ref = given.parcel.body.buffer
    if ref is None:
        return given.parcel.buffer
    if not context.road.accept(context.run_id, step, given.silo, ref):
        return b""
    return Region(context.staging.buffer_path(given.silo), 0, ref.size_bytes).read(0, ref.size_bytes)


def _is_due(context: RunContext, silos: Sequence[str], begun_s: float) -> bool:
    """Whether one of the silos may still answer in time."""
    timeout_s, deadline_s = context.spec.rounds.timeout_s, context.road.deadline_s
    return any(time.monotonic() < deadline_s(context.run_id, silo, begun_s, timeout_s) for silo in silos)
