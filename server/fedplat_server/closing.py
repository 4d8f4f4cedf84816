"""The closing evaluation: the last round's model is measured too."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fedplat.errors import LayoutError, WireError
from fedplat.wire.messages import EvaluateReply, EvaluateRequest
from fedplat_server.checkpoints import Checkpoint
from fedplat_server.context import RunContext
from fedplat_server.exchange import Inquiry
from fedplat_server.figures import evaluation, note_left_out, note_tests
from fedplat_server.outgoing import outgoing
from fedplat_server.recruiting import RunFailed
from fedplat_server.registry import Member
from fedplat_server.store import Split


def closing_evaluation(
    context: RunContext, model: Checkpoint, members: Sequence[Member], inquiry: Inquiry[EvaluateReply]
) -> None:
    """Measure the last weights and write it down. RunFailed if the silos' figures make no sense."""
    number = model.manifest.round
    replies = _ask(context, model, members, inquiry)
    shared = [(silo, s) for silo in sorted(replies) if (s := replies[silo].evaluated) is not None]
    try:
        if shared:
            found = evaluation(shared, number, Split.TEST)
            context.store.rounds.record_evaluation(run_id=context.run_id, evaluation=found)
            note_left_out(context, found, [silo for silo, _ in shared])
    except (WireError, LayoutError) as error:
        raise RunFailed(f"the closing evaluation makes no sense: {error.message}") from None
    note_tests(context, number, [(silo, s) for silo, s in shared if replies[silo].share_metrics])


def _ask(
    context: RunContext, model: Checkpoint, members: Sequence[Member], inquiry: Inquiry[EvaluateReply]
) -> dict[str, EvaluateReply]:
    """The answers that come before the timeout, or later by a line that moves."""
    number, spec_hash = model.manifest.round, context.spec.hash
    begun_s = time.monotonic()
    replies: dict[str, EvaluateReply] = {}
    context.staging.clear()  # a killed server may have left weights, whole or not
    try:
        weights = outgoing(context, model, members)
        question = EvaluateRequest(run=context.run_id, spec_hash=spec_hash, round=number, buffer=weights.ref)
        inquiry.ask(members, question, weights.inline)
        while _is_due(context, inquiry.waiting_for, begun_s):
            replies |= {g.silo: g.parcel.body for g in inquiry.answers(1.0) if g.failed is None}
    finally:
        context.road.close(context.run_id)
        context.staging.clear()
    return replies


def _is_due(context: RunContext, silos: Sequence[str], begun_s: float) -> bool:
    """Whether one of the silos may still answer in time."""
    timeout_s, deadline_s = context.spec.rounds.timeout_s, context.road.deadline_s
    return any(time.monotonic() < deadline_s(context.run_id, silo, begun_s, timeout_s) for silo in silos)
