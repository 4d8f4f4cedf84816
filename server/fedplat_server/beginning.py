"""How a run begins: with its silos' agreement and first weights, or where the last process of the server left it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedplat.home import ServerHome
from fedplat.metrics import MetricSums
from fedplat.params import Layout
from fedplat.reasons import Reason
from fedplat.secagg.roster import RunBinding
from fedplat.spec import RunSpec
from fedplat.wire.messages import (
    AgreeReply,
    EvaluateReply,
    JoinReply,
    JoinRequest,
    KeysReply,
    Reply,
    TrainReply,
    UnmaskReply,
    WeightsReply,
    WireParameter,
    layout_from_wire,
    layout_to_wire,
)
from fedplat.wire.terms import Shape
from fedplat_server.checkpoints import Checkpoint, CheckpointError, Checkpoints
from fedplat_server.context import RunContext
from fedplat_server.exchange import Answer, Inquiry
from fedplat_server.firstweights import init_fingerprint, save_from_file, save_from_silo
from fedplat_server.ledgers import Ledgers
from fedplat_server.recruiting import Agreement, Recruiting, RunFailed, agree
from fedplat_server.registry import Member, Registry
from fedplat_server.road import Road
from fedplat_server.secure import SecureRun
from fedplat_server.staging import Staging
from fedplat_server.store import Run, RunSiloState, Store
from fedplat_server.strategies import make_strategy
from fedplat_server.superlink import Link
from fedplat_server.turns import Turns
from fedplat_server.uploads import told

# (missing, have, minimum, the run that has precedence at one of them)
Waiting = Callable[[Sequence[str], int, int, str | None], None]


@dataclass(frozen=True)
class Start:
    """From where the rounds go on: the model after `committed` rounds, and who takes part."""

    context: RunContext
    model: Checkpoint
    members: tuple[str, ...]
    committed: int


class CheckpointLost(Exception):
    """The last committed checkpoint is missing or damaged; `good` is the newest that is not."""

    def __init__(self, problem: str, good: Checkpoint | None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.good = good


@dataclass(frozen=True)
class Office:
    """What the parts of a run's life share: its spec, and the ways to the store and to the silos."""

    run_id: str
    spec: RunSpec
    home: ServerHome
    store: Store
    link: Link
    road: Road
    registry: Registry
    flower_run: int
    stop: threading.Event
    turns: Turns
    let_go: set[str]
    ca_fingerprint: str = ""
    stale_epochs: set[int] = field(default_factory=set)

    def keys(self) -> Inquiry[KeysReply]:
        """Asks for masking keys."""
        return self.inquiry(KeysReply)

    def agree(self) -> Inquiry[AgreeReply]:
        """Asks for signatures under a cohort."""
        return self.inquiry(AgreeReply)

    def unmask(self) -> Inquiry[UnmaskReply]:
        """Asks for help to open a sum."""
        return self.inquiry(UnmaskReply)

    def inquiry(self, answer: type[Answer]) -> Inquiry[Answer]:
        """A question to silos of this run."""
        return Inquiry(self.link, self.flower_run, answer, self.stop, self._is_enrolled, self._hear)

    @cached_property
    def ledgers(self) -> Ledgers:
        """What silos have said of their privacy ledgers."""
        return Ledgers(self.store, self.home)

    def _hear(self, member: Member, reply: Reply) -> None:
        if isinstance(reply, JoinReply | TrainReply | EvaluateReply) and reply.ledger is not None:
            self.ledgers.hear(member, reply.ledger)

    def _is_enrolled(self, member: Member) -> bool:
        now = self.registry.member(member.name)
        return now is not None and now.node_id == member.node_id

    def members(self, names: Sequence[str]) -> list[Member]:
        """Those of `names` that are enrolled."""
        return [m for m in map(self.registry.member, names) if m is not None]

    def ask_to_join(self, inquiry: Inquiry[JoinReply], members: Sequence[Member], num_silos: int) -> None:
        """Will you take part? Each hears what is known of its own privacy ledger, if anything is."""
        request = self._join_request(num_silos)
        copies = [(member, self.ledgers.copy_for(member)) for member in members]
        inquiry.ask([member for member, copy in copies if copy is None], request)
        for member, copy in copies:
            if copy is not None:
                inquiry.ask([member], request.model_copy(update={"ledger": copy}))

    def _join_request(self, num_silos: int) -> JoinRequest:
        return JoinRequest(
            run=self.run_id,
            spec_hash=self.spec.hash,
            spec=self.spec.canonical(),
            num_silos=num_silos,
            parent=self.store.runs.get(self.run_id).parent_id,
        )

    def note_join(self, silo: str, reply: JoinReply, refused: Reason | None) -> None:
        """Write a silo's answer down."""
        if refused is not None:
            self.note_refusal(silo, refused)
            return
        info = {
            "capabilities": reply.capabilities.model_dump(mode="json") if reply.capabilities else None,
            "task_version": reply.task_version,
            "task_hash": reply.task_hash,
            "frozen_hash": reply.frozen_hash,
            "warnings": [{"code": w.code, "text": str(w), "hint": w.hint} for w in reply.warnings],
        }
        self.store.runs.join(
            run_id=self.run_id,
            silo_name=silo,
            state=RunSiloState.ACCEPTED,
            num_examples=reply.num_examples,
            info=info,
        )

    def release(self, silo: str) -> None:
        """Another run has precedence at a silo that may have joined: it hears that, and is asked again later."""
        self.store.runs.join(run_id=self.run_id, silo_name=silo, state=RunSiloState.INVITED)
        for member in self.members([silo]):
            self.link.on_message(member.node_id)

    def note_refusal(self, silo: str, reason: Reason) -> None:
        """Write down why a silo does not take part."""
        self.store.runs.join(
            run_id=self.run_id,
            silo_name=silo,
            state=RunSiloState.REFUSED,
            reason_code=reason.code,
            reason=told(reason),
        )

    def secure(self, layout: Layout, minimum: int, empty_sums: MetricSums | None) -> SecureRun | None:
        """The run's secure aggregation, if it has that."""
        if not self.spec.secure_aggregation.enabled:
            return None
        if empty_sums is None:
            raise RunFailed("the silos do not say what their metric sums look like, which masking them takes")
        binding = RunBinding(ca_fingerprint=self.ca_fingerprint, run=self.run_id, spec_hash=self.spec.hash)
        shape = Shape(layout.fingerprint, layout.size, empty_sums)
        return SecureRun(binding, self.spec, self.store, self, shape, minimum, self.stale_epochs)

    def context(self, layout: Layout, minimum: int, empty_sums: MetricSums | None = None) -> RunContext:
        """The rounds' surroundings."""
        return RunContext(
            self.run_id,
            self.spec,
            layout,
            minimum,
            self.store,
            make_strategy(self.spec),
            Checkpoints(self.home.checkpoints(self.run_id), self.spec.hash),
            Staging(self.home.staging(self.run_id)),
            self.road,
            self.secure(layout, minimum, empty_sums),
            self.ledgers,
        )


def begin(office: Office, run: Run, waiting: Waiting) -> Start:
    """Recruit, agree on a model, and write the first weights down. A run that continues another one's has that one's
    checkpoint in its folder, and takes weights and strategy state from it."""
    inherited = _inherited(office, run)
    minimum, agreement = _recruit(office, run, inherited, waiting)
    context = office.context(agreement.layout, minimum, agreement.empty_sums)
    model = inherited or _initial(office, context, agreement)
    office.store.runs.set_layout(
        run_id=office.run_id,
        layout={
            "parameters": [p.model_dump(mode="json") for p in layout_to_wire(agreement.layout)],
            "fingerprint": agreement.layout.fingerprint,
            "minimum": minimum,
            "empty_sums": agreement.empty_sums.model_dump(mode="json") if agreement.empty_sums else None,
        },
        weights_path=str(model.path),
        weights_sha256=model.sha256,
    )
    return Start(context, model, agreement.members, run.rounds_committed)


def resume(office: Office, run: Run) -> Start:
    """Where the rows stop; what no row owns is removed. CheckpointLost if the last committed weights are damaged."""
    kept: dict[str, object] = dict(run.layout or {})
    parameters = kept["parameters"]
    assert isinstance(parameters, list)
    layout = layout_from_wire(tuple(WireParameter.model_validate(p) for p in parameters))
    sums = kept.get("empty_sums")
    empty_sums = None if sums is None else MetricSums.model_validate(sums)
    context = office.context(layout, int(str(kept["minimum"])), empty_sums)
    context.checkpoints.discard_after(run.rounds_committed)
    try:
        checkpoint = context.checkpoints.load(run.rounds_committed)
    except CheckpointError as error:
        raise CheckpointLost(error.message, context.checkpoints.latest_good()[0]) from error
    took_part = (RunSiloState.ACCEPTED, RunSiloState.AWAY)
    members = tuple(s.silo_name for s in office.store.runs.silos(office.run_id) if s.state in took_part)
    return Start(context, checkpoint, members, run.rounds_committed)


def _inherited(office: Office, run: Run) -> Checkpoint | None:
    if run.parent_id is None:
        return None
    return Checkpoints(office.home.checkpoints(office.run_id), office.spec.hash).load(run.rounds_committed)


def _recruit(office: Office, run: Run, inherited: Checkpoint | None, waiting: Waiting) -> tuple[int, Agreement]:
    names = office.spec.silos.names or [m.name for m in office.registry.members()]

    def waits(missing: Sequence[str], minimum: int, behind: str | None) -> None:
        waiting(missing, len(names) - len(missing), minimum, behind)

    recruiting = Recruiting(
        spec=office.spec,
        ask=lambda inquiry, members: office.ask_to_join(inquiry, members, len(names)),
        registry=office.registry,
        turns=office.turns,
        age=(run.created_at.isoformat(), run.id),
        report=office.note_join,
        waiting=waits,
        release=office.release,
        let_go=office.let_go,
    )
    with office.inquiry(JoinReply) as inquiry:
        answers = recruiting.gather(inquiry)
    pinned = inherited.layout.fingerprint if inherited else init_fingerprint(_init_path(office), answers.accepted)
    agreement = agree(office.spec, answers.accepted, pinned)
    for silo, reason in agreement.excluded.items():
        office.note_refusal(silo, reason)
    minimum = answers.minimum(office.spec)
    if len(agreement.members) < minimum:
        said = "; ".join(f"{silo}: {reason}" for silo, reason in agreement.excluded.items())
        raise RunFailed(f"{len(agreement.members)} of at least {minimum} silos fit together ({said})")
    return minimum, agreement


def _init_path(office: Office) -> Path:
    return office.home.run(office.run_id) / "init.safetensors"


def _initial(office: Office, context: RunContext, agreement: Agreement) -> Checkpoint:
    """The first checkpoint, from the run's init file or from a silo."""
    context.checkpoints.discard_after(-1)  # a process that was killed here may have left a part of one
    path = _init_path(office)
    if path.exists():
        return save_from_file(path, context)
    with office.inquiry(WeightsReply) as inquiry:
        return save_from_silo(inquiry, context, office.members(agreement.members))
