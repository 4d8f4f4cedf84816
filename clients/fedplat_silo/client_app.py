"""The silo's Flower ClientApp: join, weights, train, evaluate. Whatever goes wrong leaves as a typed reason."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedplat.errors import PolicyError, WireError
from fedplat.reasons import Code, Reason
from fedplat.secagg.errors import RefusedError
from fedplat.wire.codec import RECORD, Parcel, from_record, to_record
from fedplat.wire.messages import (
    AgreeReply,
    AgreeRequest,
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    JoinRequest,
    KeysReply,
    KeysRequest,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
    WeightsReply,
    WeightsRequest,
)
from fedplat_silo.data.errors import Refused
from fedplat_silo.ledger import LedgerError
from fedplat_silo.participation import Exchange
from fedplat_silo.policy import Rule
from fedplat_silo.runs import Runs
from fedplat_silo.trainer.errors import Cancelled, TrainingFailed

log = logging.getLogger(__name__)

Asked = TypeVar("Asked", bound=Request)
Answer = tuple[Reply, bytes]
ERROR_UNREADABLE = 1


def make_client_app(runs: Runs, silo: str) -> ClientApp:
    """The app. Calling it raises Cancelled if the run ends meanwhile, and nothing else."""
    app = ClientApp()

    def answer(message: Message, kind: type[Asked], handle: Callable[[Parcel[Asked]], Answer]) -> Message:
        return _answer(message, kind, silo, handle)

    @app.query("join")
    def join(message: Message, _context: Context) -> Message:
        return answer(message, JoinRequest, lambda parcel: (runs.join(parcel.body), b""))

    @app.query("weights")
    def weights(message: Message, _context: Context) -> Message:
        def handle(parcel: Parcel[WeightsRequest]) -> Answer:
            return runs.find(parcel.body.run, parcel.body.spec_hash).initial_weights()

        return answer(message, WeightsRequest, handle)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def handle(parcel: Parcel[TrainRequest]) -> Answer:
            runs.check_paused()
            return runs.find(parcel.body.run, parcel.body.spec_hash).train(parcel, _exchange(context))

        return answer(message, TrainRequest, handle)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def handle(parcel: Parcel[EvaluateRequest]) -> Answer:
            runs.check_paused()
            part = runs.find(parcel.body.run, parcel.body.spec_hash)
            return part.evaluate(parcel, _exchange(context))

        return answer(message, EvaluateRequest, handle)

    @app.query("keys")
    def keys(message: Message, _context: Context) -> Message:
        def handle(parcel: Parcel[KeysRequest]) -> Answer:
            return runs.find(parcel.body.run, parcel.body.spec_hash).keys(parcel.body), b""

        return answer(message, KeysRequest, handle)

    @app.query("agree")
    def agree(message: Message, _context: Context) -> Message:
        def handle(parcel: Parcel[AgreeRequest]) -> Answer:
            return runs.find(parcel.body.run, parcel.body.spec_hash).agree(parcel.body), b""

        return answer(message, AgreeRequest, handle)

    @app.query("unmask")
    def unmask(message: Message, _context: Context) -> Message:
        def handle(parcel: Parcel[UnmaskRequest]) -> Answer:
            return runs.find(parcel.body.run, parcel.body.spec_hash).unmask(parcel.body), b""

        return answer(message, UnmaskRequest, handle)

    return app


def run_of(record: RecordDict) -> str | None:
    """Which run a message belongs to, before it is understood; None if that cannot be seen."""
    run = _peek(record, "run")
    return run if isinstance(run, str) else None


def round_of(record: RecordDict) -> int | None:
    """Which round a message belongs to, likewise."""
    number = _peek(record, "round")
    return number if isinstance(number, int) else None


def _peek(record: RecordDict, name: str) -> object:
    config = record.config_records.get(RECORD)
    body = config.get("body") if config is not None else None
    try:
        found: object = json.loads(body)[name] if isinstance(body, str) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found


def _exchange(context: Context) -> Exchange:
    waiting_s, communicating_s = (float(context.node_config.get(name, 0.0)) for name in Exchange.__match_args__)
    return Exchange(waiting_s, communicating_s)


def _answer(message: Message, kind: type[Asked], silo: str, handle: Callable[[Parcel[Asked]], Answer]) -> Message:
    try:
        parcel = from_record(message.content, kind)
    except WireError as error:
        log.warning("a message of the server cannot be read: %s", error.message)
        return Message(Error(ERROR_UNREADABLE, Code.MESSAGE_INVALID.value), reply_to=message)
    try:
        reply, buffer = handle(parcel)
    except Cancelled:
        raise
    except Exception as error:  # the boundary: beyond it there are reasons only
        reason = _reason(parcel.body, error)
        reply, buffer = _failed(parcel.body, silo, reason), b""
        log.warning("run %s: %s", parcel.body.run, reason)
        unforeseen = error if reason.code is Code.INTERNAL else None
        log.debug("run %s, %s: %s", parcel.body.run, parcel.body.kind, error, exc_info=unforeseen)
    return Message(to_record(reply, buffer), reply_to=message)


def _reason(request: Request, error: Exception) -> Reason:
    """What may leave the silo of an error. Its text may hold a value and does not."""
    match error:
        case Refused() | TrainingFailed():
            return error.reason
        case RefusedError():
            return Reason.of_refusal(error.refusal)
        case LedgerError():
            return Reason.of(Code(error.code), **error.words)
        case WireError():
            return Reason.of(Code.MESSAGE_INVALID)
        case PolicyError():
            return Reason.of(Code.POLICY, rule=Rule.UNREADABLE.value)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return Reason.of(Code.DISK_FULL)
        case _:
            return Reason.of(Code.INTERNAL, phase=_PHASES[request.kind])


_PHASES = {
    JoinRequest.kind: "joining",
    WeightsRequest.kind: "building the model",
    TrainRequest.kind: "training",
    EvaluateRequest.kind: "evaluating",
    KeysRequest.kind: "agreeing on keys",
    AgreeRequest.kind: "agreeing on a cohort",
    UnmaskRequest.kind: "opening a sum",
}


def _failed(request: Request, silo: str, reason: Reason) -> Reply:
    match request:
        case TrainRequest(run=run, round=round_number, step=step):
            return TrainReply(run=run, silo=silo, round=round_number, step=step, failed=reason)
        case EvaluateRequest(run=run, round=round_number):
            return EvaluateReply(run=run, silo=silo, round=round_number, failed=reason)
        case WeightsRequest(run=run):
            return WeightsReply(run=run, silo=silo, failed=reason)
        case KeysRequest(run=run):
            return KeysReply(run=run, silo=silo, failed=reason)
        case AgreeRequest(run=run):
            return AgreeReply(run=run, silo=silo, failed=reason)
        case UnmaskRequest(run=run):
            return UnmaskReply(run=run, silo=silo, failed=reason)
        case _:
            return JoinReply(run=request.run, silo=silo, failed=reason)
