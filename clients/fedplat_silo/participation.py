"""A silo's part in one run: its workers, and the order of things in a round."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from fedplat import __version__
from fedplat.errors import FedplatError, WireError
from fedplat.ledger import LedgerCopy
from fedplat.reasons import Code, Reason
from fedplat.secagg.figures import Figures
from fedplat.spec import RunSpec
from fedplat.spec.weighting import weight_of
from fedplat.wire.buffers import INLINE_BYTES
from fedplat.wire.codec import Parcel
from fedplat.wire.http import Phase, Progress
from fedplat.wire.messages import (
    AgreeReply,
    AgreeRequest,
    Capabilities,
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    KeysReply,
    KeysRequest,
    Reply,
    StepRequest,
    Timings,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
    WeightsReply,
    layout_to_wire,
)
from fedplat_silo.accounts import Account
from fedplat_silo.data.errors import Refused
from fedplat_silo.masked_steps import MaskedSteps
from fedplat_silo.masker import Masker
from fedplat_silo.policy import Policy
from fedplat_silo.records import forget_checkpoint
from fedplat_silo.road import forget_fetched
from fedplat_silo.spool import FIGURES, Finished, Order, Spool, Stored, in_blocks
from fedplat_silo.tasks.registry import identity
from fedplat_silo.trainer.errors import Cancelled, TrainingFailed
from fedplat_silo.trainer.group import EvaluateOrder, EvaluateResult, Ready, TrainOrder
from fedplat_silo.trainer.memory import Weights, map_weights
from fedplat_silo.workplace import Site, Workers, Workplace

Answer = TypeVar("Answer", bound=Reply)
MaskedAnswer = TypeVar("MaskedAnswer", TrainReply, EvaluateReply)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exchange:
    """The last exchange with the server: how long the silo waited for it, and spent on pulling and pushing."""

    waiting_s: float = 0.0
    communicating_s: float = 0.0


class Participation:
    """One run at this silo. Used by the run's own thread; only `warm_up`, `interrupt` and `close` may come from
    others."""

    def __init__(self, run: str, spec: RunSpec, policy: Policy, site: Site, account: Account) -> None:
        self.run = run
        self.spec = spec
        self.policy = policy
        self._site = site
        self._account = account
        self._spool = Spool(site.home.spool)
        self._road = site.make_road()
        self._transfer_s = 0.0
        self._round = 0
        self._workplace = Workplace(run, spec, site, account.enrol, self._say)
        self._masked: MaskedSteps | None = None
        if spec.secure_aggregation.enabled:
            self._masked = MaskedSteps(run, spec, site.home, lambda: self._prepare()[1])

    def join(self, parent: str | None = None, known: LedgerCopy | None = None) -> JoinReply:
        """Prepares the workers, reserves what the run is going to cost, and says what this silo trains with. `parent`:
        the run that this one continues; `known`: what the server knows of the privacy ledger. Raises Refused,
        TrainingFailed, Cancelled, LedgerError."""
        self._say(Phase.CHECKING, 0.0)
        self._check_hours()
        self._account.check(known)
        task = identity(self.spec.task.name)
        ready = self._prepare()[1]
        reserved = self._account.reserve(self.policy, ready.num_units)
        if self._masked is not None:
            self._masked.join(ready, parent)
        self._say(Phase.WAITING, 0.0)
        return JoinReply(
            run=self.run,
            silo=self._site.home.name,
            capabilities=Capabilities(
                fedplat=__version__,
                torch=ready.torch_version,
                device=ready.device,
                workers=ready.num_workers,
                threads=ready.threads,
            ),
            task_version=task.version,
            task_hash=task.sha256,
            layout=layout_to_wire(ready.layout),
            frozen_hash=ready.frozen_hash,
            num_examples=self._count(ready),
            min_cohort=self.policy.fewest_updates(self.spec),
            empty_sums=ready.empty_sums,
            warnings=ready.warnings,
            ledger=reserved,
        )

    def warm_up(self) -> None:
        """Starts the workers ahead of the first question; what goes wrong shows when they are asked for something."""
        try:
            self._prepare()
        except (Cancelled, FedplatError, Refused, TrainingFailed, OSError) as error:
            log.debug("run %s: not prepared ahead: %s", self.run, error)

    def initial_weights(self) -> tuple[WeightsReply, bytes]:
        """The model built from the run's seed, and its small buffer; a large one is at the server."""
        weights = self._prepare()[0].initial_weights()
        stored = self._spool.put_weights(self.run, weights, self.spec.transport.precision)
        return self._send(WeightsReply(run=self.run, silo=self._site.home.name), 0, stored)

    def train(self, parcel: Parcel[TrainRequest], exchange: Exchange) -> tuple[TrainReply, bytes]:
        """Trains, and has the update in the spool and in the privacy ledger before anything leaves; asked again, it
        sends what is there. Returns the reply and its small buffer; a large one is at the server."""
        request = parcel.body
        if request.round > self.spec.rounds.count:
            raise WireError(f"round {request.round} of a run that has {self.spec.rounds.count}")
        self._round = request.round
        self._check_hours()
        self._account.look(request.ledgers.get(self._site.home.name))
        self._spool.forget_before(self.run, request.round)
        order = self._order(parcel, request.round)
        finished = self._spool.get(order)
        if self._masked is not None:
            self._masked.check(self.policy, request, order)
        if finished is None:
            finished = self._train(parcel, order, exchange)
        else:
            log.info("run %s: round %d is asked for again, and sent again", self.run, request.round)
        forget_fetched(self._spool.folder(self.run))
        # A large update is on its way while the disk still works on it; the reply, which makes it count, waits. Not so
        # what is charged: retrained after a power cut it would be another release.
        with ThreadPoolExecutor(1) as disk:
            settled = disk.submit(self._spool.settle, order)
            if self.spec.privacy.is_private:
                settled.result()
            charged = self._account.spend(request.round, finished)
            reply = finished.reply.model_copy(update={"step": request.step, "ledger": charged})
            if self._masked is not None:
                sent = self._send_masked(self._masked, reply, request, order, finished.update)
            else:
                sent = self._send(reply, request.step, finished.update)
            settled.result()
        forget_checkpoint(self._site.home, self.run)
        return sent

    def evaluate(self, parcel: Parcel[EvaluateRequest], exchange: Exchange) -> tuple[EvaluateReply, bytes]:
        """Measures the weights on the silo's test records. Returns the reply, and the figures if they are masked. They
        are in the spool, and in the privacy ledger if they are noised, before anything leaves."""
        request = parcel.body
        self._round = request.round
        order = self._order(parcel, request.round + 1)  # its place is that of the round that would have measured them
        finished = self._spool.get(order) or self._evaluate(parcel, order, exchange)
        self._spool.settle(order)
        charged = self._account.spend(request.round, finished) if finished.released else None
        kept = finished.reply
        reply = EvaluateReply(
            run=self.run,
            silo=self._site.home.name,
            round=request.round,
            evaluated=kept.evaluated if self._shares_metrics else None,
            share_metrics=kept.share_metrics,
            timings=kept.timings,
            ledger=charged,
        )
        if self._masked is not None:
            return self._send_masked(self._masked, reply, request, order, finished.update)
        return reply, b""

    def keys(self, request: KeysRequest) -> KeysReply:
        """A key for an epoch of secure aggregation."""
        return KeysReply(run=self.run, silo=self._site.home.name, key=self._masker().key(request.epoch))

    def agree(self, request: AgreeRequest) -> AgreeReply:
        """The signature under the cohort of a step."""
        answer, num_confirmed = self._masker().agree(self.policy, request.question)
        return AgreeReply(run=self.run, silo=self._site.home.name, answer=answer, num_confirmed=num_confirmed)

    def unmask(self, request: UnmaskRequest) -> UnmaskReply:
        """What helps to open the sum of a cohort."""
        answer = self._masker().unmask(request.question)
        return UnmaskReply(run=self.run, silo=self._site.home.name, answer=answer)

    def interrupt(self) -> None:
        """Ends what the workers do now, or a transfer, which raises Cancelled; the next command starts them anew."""
        self._road.cancel()
        self._workplace.interrupt()

    def close(self) -> None:
        """Ends the workers, what they do, and a transfer; from now on everything raises Cancelled."""
        self._road.close()
        self._workplace.close()

    def _train(self, parcel: Parcel[TrainRequest], spool_order: Order, exchange: Exchange) -> Finished:
        request = parcel.body
        workers, ready = self._prepare()
        order = TrainOrder(
            round=request.round,
            proximal_mu=request.proximal_mu,
            evaluate=request.evaluate and self._shares_metrics,
            noise_multiplier=self._account.noise_multiplier(measures=request.evaluate and self._shares_metrics),
        )
        result = workers.train(order, self._weights(parcel, ready))
        reply = self._kept_reply(spool_order, request, self._timings(result.timings, exchange))
        evaluated, trained = result.evaluated, result.trained if self._shares_metrics else None
        log.info(
            "run %s: round %d of %d trained in %.1f s",
            self.run,
            request.round,
            self.spec.rounds.count,
            result.timings.training_s,
        )
        if self._masked is not None:
            figures = Figures(evaluated=evaluated, trained=trained)
            blocks = self._masked.quantised(request, ready, spool_order, result.update, figures)
            return self._spool.put(spool_order, reply, blocks, result.released)
        seen = {
            "weight": weight_of(self.spec, self._site.home.name, ready.num_train),
            "num_examples": self._count(ready),
            "evaluated": evaluated,
            "trained": trained,
            "share_metrics": self.policy.share_metrics == "per-silo",
        }
        blocks = in_blocks(result.update, self.spec.transport.precision)
        return self._spool.put(spool_order, reply.model_copy(update=seen), blocks, result.released)

    def _evaluate(self, parcel: Parcel[EvaluateRequest], order: Order, exchange: Exchange) -> Finished:
        request = parcel.body
        workers, ready = self._prepare()
        result = EvaluateResult(None, Timings())
        if self._shares_metrics:
            self._account.check_evaluation()
            result = workers.evaluate(EvaluateOrder(request.round), self._weights(parcel, ready))
        forget_fetched(self._spool.folder(self.run))
        self._say(Phase.SENDING, 0.0)
        reply = self._kept_reply(order, request, self._timings(result.timings, exchange))
        if self._masked is not None:
            figures = Figures(weight=1, evaluated=result.evaluated)
            blocks = self._masked.quantised(request, ready, order, None, figures)
            return self._spool.put(order, reply, blocks, result.released)
        shares = self.policy.share_metrics == "per-silo"
        reply = reply.model_copy(update={"evaluated": result.evaluated, "share_metrics": shares})
        return self._spool.put(order, reply, [memoryview(reply.model_dump_json().encode())], result.released)

    def _kept_reply(self, order: Order, request: TrainRequest | EvaluateRequest, timings: Timings) -> TrainReply:
        """What the spool keeps beside the bytes; what the server may see of it is added to it."""
        return TrainReply(
            run=self.run, silo=self._site.home.name, round=order.round, step=request.step, timings=timings
        )

    def _order(self, parcel: Parcel[TrainRequest] | Parcel[EvaluateRequest], round_number: int) -> Order:
        """What the answer is an answer to."""
        return Order(
            run=self.run,
            round=round_number,
            spec_hash=parcel.body.spec_hash,
            weights=_weights_digest(parcel),
            vector=self._vector(parcel.body),
        )

    def _vector(self, request: TrainRequest | EvaluateRequest) -> str:
        if self._masked is not None:
            return self._masked.vector(request)
        return FIGURES if isinstance(request, EvaluateRequest) else ""

    def _send_masked(
        self, steps: MaskedSteps, reply: MaskedAnswer, request: StepRequest, order: Order, stored: Stored
    ) -> tuple[MaskedAnswer, bytes]:
        """The masked vector, once its step is on disk."""
        begun_s = time.monotonic()
        part, blocks = steps.open(self.policy, request, order, stored)
        changes: dict[str, object] = {"masked": part}
        if stored.ref.size_bytes <= INLINE_BYTES:
            buffer = b"".join(blocks)
            changes["timings"] = reply.timings.model_copy(update={"masking_s": time.monotonic() - begun_s})
            return reply.model_copy(update=changes), buffer
        noise = self._spool.put_masked(order, blocks)
        changes["timings"] = reply.timings.model_copy(update={"masking_s": time.monotonic() - begun_s})
        sent = self._send(reply.model_copy(update=changes), request.step, noise)
        self._spool.forget_masked(order)
        return sent

    def _weights(self, parcel: Parcel[TrainRequest] | Parcel[EvaluateRequest], ready: Ready) -> Weights:
        """The weights that came with a request, or are fetched now."""
        ref, size, precision = parcel.body.buffer, ready.layout.size, self.spec.transport.precision
        if ref is None:
            return parcel.vector(size, precision)
        if ref.size_bytes != size * precision.item_bytes:
            raise WireError(f"weights of {ref.size_bytes} bytes are not {size} numbers in {precision}")
        folder = self._spool.folder(self.run)
        with self._moving(Phase.RECEIVING) as report:
            return map_weights(self._road.fetch(self.run, ref, folder, report), precision)

    def _send(self, reply: Answer, step: int, stored: Stored) -> tuple[Answer, bytes]:
        """The reply as it leaves: with its buffer beside it, or once the server has the buffer."""
        with self._moving(Phase.SENDING) as report:
            if stored.ref.size_bytes <= INLINE_BYTES:
                return reply, stored.region.read(0, stored.ref.size_bytes)
            self._road.deliver(self.run, step, stored.region, stored.ref, report)
        return reply.model_copy(update={"buffer": stored.ref}), b""

    @contextmanager
    def _moving(self, phase: Phase) -> Iterator[Callable[[float], None]]:
        """Says how far a transfer is, and takes its time."""
        self._say(phase, 0.0)
        begun_s = time.monotonic()
        try:
            yield lambda share: self._say(phase, share)
        finally:
            self._transfer_s += time.monotonic() - begun_s

    def _prepare(self) -> tuple[Workers, Ready]:
        return self._workplace.prepare(self.policy.max_threads)

    def _masker(self) -> Masker:
        if self._masked is None:
            raise WireError(f"run {self.run} has no secure aggregation, and is asked for a part of it")
        return self._masked.masker

    def _check_hours(self) -> None:
        if not self.policy.is_open(datetime.now().astimezone().time()):
            raise Refused(Reason.of(Code.OUTSIDE_HOURS), f"allowed_hours is {self.policy.allowed_hours}")

    def _say(self, phase: Phase, share: float) -> None:
        self._site.report(Progress(run=self.run, round=self._round, phase=phase, share=share))

    def _count(self, ready: Ready) -> int | None:
        return ready.num_train if self.policy.share_counts else None

    def _timings(self, timings: Timings, exchange: Exchange) -> Timings:
        """Communicating is also what large buffers took: these weights, and the update before."""
        communicating_s, self._transfer_s = exchange.communicating_s + self._transfer_s, 0.0
        more = {"waiting_s": exchange.waiting_s, "communicating_s": communicating_s}
        if not self.policy.share_counts:
            more["samples_per_s"] = 0.0  # with the time it would give the number of records
        return timings.model_copy(update=more)

    @property
    def _shares_metrics(self) -> bool:
        """Whether the policy lets figures out; if not, none are made, so that none are charged."""
        return self.policy.share_metrics != "none"


def _weights_digest(parcel: Parcel[TrainRequest] | Parcel[EvaluateRequest]) -> str:
    ref = parcel.body.buffer
    if ref is None:
        return hashlib.sha256(parcel.buffer).hexdigest()
    if ref.size_bytes <= INLINE_BYTES:  # or the same weights would have two names
        raise WireError(f"a buffer of {ref.size_bytes} bytes comes by the road, not in its message")
    return ref.digest
