"""A server and silos with secure aggregation, without a network: the silos answer by the real state machines, from
memory, the server works on real files and rows."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.canonical import sha256_hex
from fedplat.home import ServerHome
from fedplat.identity import fingerprint, new_key, public_pem
from fedplat.metrics import MetricSums
from fedplat.params import Layout, Parameter
from fedplat.reasons import Reason
from fedplat.secagg import keys as key_schedule
from fedplat.secagg import silo
from fedplat.secagg.errors import RefusedError
from fedplat.secagg.figures import Figures, FiguresFormat, part_of
from fedplat.secagg.fixedpoint import quantise
from fedplat.secagg.roster import RunBinding
from fedplat.secagg.rules import SiloRules
from fedplat.secagg.state import SiloState, open_run
from fedplat.spec import RunSpec, parse_spec
from fedplat.wire.codec import Parcel
from fedplat.wire.messages import (
    AgreeReply,
    AgreeRequest,
    EvaluateReply,
    EvaluateRequest,
    KeysReply,
    KeysRequest,
    Reply,
    Request,
    StepRequest,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
    layout_to_wire,
)
from fedplat.wire.terms import Shape, step_terms
from fedplat_server.beginning import Office, resume
from fedplat_server.checkpoints import Checkpoint
from fedplat_server.closing import masked_evaluation
from fedplat_server.context import RoundLost, RoundTask, RunContext
from fedplat_server.exchange import Given
from fedplat_server.registry import Member
from fedplat_server.road import Road
from fedplat_server.rounds import RoundResult, run_round
from fedplat_server.store import Store, open_store
from fedplat_server.transitions import RoundState, RunState
from fedplat_server.turns import Turns

SIZE = 5
CA = "c" * 64
EMPTY = MetricSums(counts={"examples": [0]}, totals={"loss": 0.0})
SPEC = """
name = "masked"
[task]
name = "add_constant"
[data]
name = "none"
[rounds]
count = {rounds}
timeout_s = {timeout_s}
[strategy]
name = "{strategy}"
[training]
steps = 1
[secure_aggregation]
enabled = true
min_cohort = {min_cohort}
max_examples = 10
"""
SAYS_NOTHING = "nothing"


@dataclass
class MaskedSilo:
    """One silo: its key, its state and its spool. `says(request)`: what it does instead of answering, if anything."""

    name: str
    weight: int
    key: ec.EllipticCurvePrivateKey
    state: SiloState
    spool: dict[tuple[int, int, str], np.ndarray] = field(default_factory=dict)
    says: Callable[[Request], str | Reason | None] = lambda _request: None

    def update(self, number: int) -> np.ndarray:
        """What it has learned in a round, before it is made into whole numbers."""
        return np.linspace(-0.1, 0.1, SIZE, dtype=np.float32) * np.float32(number) * np.float32(self.weight)

    def figures(self, number: int) -> Figures:
        """Its metric sums."""
        sums = MetricSums(counts={"examples": [self.weight]}, totals={"loss": self.weight / number})
        return Figures(evaluated=sums, trained=sums)


@dataclass
class MaskedSilos:
    """All silos of a run; they outlive the server's process."""

    spec: RunSpec
    layout: Layout
    min_cohort: int
    by_name: dict[str, MaskedSilo] = field(default_factory=dict)
    seen: list[tuple[str, Request, bytes]] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)

    def add(self, name: str, weight: int) -> None:
        binding = RunBinding(ca_fingerprint=CA, run="r-1", spec_hash=self.spec.hash)
        self.by_name[name] = MaskedSilo(name, weight, new_key(), open_run(None, binding, name))

    @property
    def shape(self) -> Shape:
        return Shape(self.layout.fingerprint, self.layout.size, EMPTY)

    def rules(self) -> SiloRules:
        known = {s.name: fingerprint(s.key.public_key()) for s in self.by_name.values()}
        return SiloRules(known=known, min_cohort=self.min_cohort)

    def answer(self, name: str, asked: Request, buffer: bytes) -> Parcel[Reply] | None:
        """What a silo says; None: nothing, ever."""
        one = self.by_name[name]
        said = one.says(asked)
        if said == SAYS_NOTHING:
            return None
        try:
            if isinstance(said, Reason):
                return _failed(asked, name, said)
            return self._answer(one, asked, buffer)
        except RefusedError as error:
            return _failed(asked, name, Reason.of_refusal(error.refusal))

    def _answer(self, one: MaskedSilo, asked: Request, buffer: bytes) -> Parcel[Reply]:
        about = {"run": "r-1", "silo": one.name}
        match asked:
            case KeysRequest():
                one.state, key = silo.offer_key(one.state, one.key, asked.epoch)
                return Parcel(KeysReply(**about, key=key))
            case AgreeRequest():
                one.state, signed = silo.agree(one.state, self.rules(), one.key, asked.question)
                return Parcel(AgreeReply(**about, answer=signed, num_confirmed=1))
            case UnmaskRequest():
                return Parcel(UnmaskReply(**about, answer=silo.unmask(one.state, asked.question)))
            case TrainRequest():
                part, noise = self._step(one, asked, buffer, asked.round)
                reply = TrainReply(**about, round=asked.round, step=asked.step, masked=part)
                return Parcel(reply, noise)
            case EvaluateRequest():
                part, noise = self._step(one, asked, buffer, asked.round + 1)
                return Parcel(EvaluateReply(**about, round=asked.round, masked=part), noise)
        raise AssertionError(asked)

    def _step(self, one: MaskedSilo, asked: StepRequest, buffer: bytes, number: int) -> tuple[Any, bytes]:
        assert asked.masking is not None
        weights = sha256_hex(buffer)
        terms = step_terms(asked, self.spec, weights, self.shape)
        made = (number, terms.vector.n_max, weights)
        if made not in one.spool:
            one.spool[made] = self._quantised(one, asked, terms, number)
        one.state = silo.accept_roster(one.state, self.rules(), asked.masking.roster)
        one.state, part = silo.begin_step(one.state, self.rules(), terms, one.spool[made])
        noise = one.spool[made].copy()
        silo.mask(one.state, terms.step, noise)
        self.seen.append((one.name, asked, noise.tobytes()))
        return part, noise.tobytes()

    def _quantised(self, one: MaskedSilo, asked: StepRequest, terms: Any, number: int) -> np.ndarray:
        figures, limit = FiguresFormat(EMPTY), terms.vector.limit
        assert asked.masking is not None
        out = np.zeros(terms.vector.length, np.uint32)
        weight = part_of(limit, one.weight, asked.masking.max_weight)
        size = terms.vector.length - figures.length
        if size:
            secret = key_schedule.rounding_key(one.name.encode() * 8, self.spec.hash, number)
            clip = self.spec.secure_aggregation.clip_range
            quantise(one.update(number), out[:size], bound=clip, limit=weight, rounding_key=secret, offset=0)
        given = one.figures(number)
        hiding = key_schedule.expand(one.name.encode() * 8, repr((number, size, terms.weights)))
        out[size:] = figures.encode(Figures(weight, 0, 1.0, given.evaluated, given.trained), limit, hiding)
        return out


def _failed(asked: Request, name: str, reason: Reason) -> Parcel[Reply]:
    about: dict[str, Any] = {"run": "r-1", "silo": name, "failed": reason}
    match asked:
        case KeysRequest():
            return Parcel(KeysReply(**about))
        case AgreeRequest():
            return Parcel(AgreeReply(**about))
        case UnmaskRequest():
            return Parcel(UnmaskReply(**about))
        case TrainRequest():
            return Parcel(TrainReply(**about, round=asked.round, step=asked.step))
        case EvaluateRequest():
            return Parcel(EvaluateReply(**about, round=asked.round))
    raise AssertionError(asked)


@dataclass
class Asking:
    """An inquiry without a network."""

    silos: MaskedSilos
    open: list[tuple[str, Request, bytes]] = field(default_factory=list)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def waiting_for(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.open)

    def ask(self, members: Sequence[Member], question: Request, buffer: bytes | memoryview = b"") -> None:
        self.open += [(m.name, question, bytes(buffer)) for m in members]

    def answers(self, _timeout_s: float) -> list[Given[Reply]]:
        given, silent = [], []
        for name, question, buffer in self.open:
            parcel = self.silos.answer(name, question, buffer)
            if parcel is None:
                silent.append((name, question, buffer))
            else:
                given.append(Given(name, parcel))
        self.open = silent
        if silent and not given:
            threading.Event().wait(0.02)
        return given


@dataclass
class Everybody:
    """Nobody is ever away."""

    members: Sequence[Member]

    def lost(self, name: str, reason: Reason) -> None:
        raise AssertionError(f"{name}: {reason}")

    def present(self) -> Sequence[Member]:
        return self.members


class MaskedWorld:
    """A folder, a database, and silos: what outlives the server's process."""

    def __init__(
        self,
        folder: Path,
        weights: dict[str, int],
        *,
        rounds: int = 2,
        min_cohort: int = 2,
        strategy: str = "fedavg",
        timeout_s: float = 0.5,
    ) -> None:
        self.folder, self.home = folder, ServerHome(folder)
        text = SPEC.format(rounds=rounds, min_cohort=min_cohort, strategy=strategy, timeout_s=timeout_s)
        self.spec = parse_spec(text)
        self.rounds, self.min_cohort = rounds, min_cohort
        self.layout = Layout.assign([Parameter("w", (SIZE,), "float32")], self.spec.model)
        self.silos = MaskedSilos(self.spec, self.layout, min_cohort)
        for name, weight in weights.items():
            self.silos.add(name, weight)
        self.home.create()
        self.home.run("r-1").mkdir(parents=True)
        store = self.open()
        values = self.spec.model_dump(mode="json")
        store.runs.create(run_id="r-1", name="masked", spec=values, spec_hash=self.spec.hash, rounds_planned=rounds)
        store.runs.set_state(run_id="r-1", state=RunState.RUNNING)
        for name in sorted(weights):
            self._enrol(store, name)
        store.close()

    def open(self) -> Store:
        return open_store(f"sqlite:///{self.folder / 'fedplat.db'}")

    def _enrol(self, store: Store, name: str) -> None:
        from tests.faults.test_server_writes import enrol

        enrol(store, name, public_pem(self.silos.by_name[name].key))

    def copy(self, name: str) -> MaskedWorld:
        """The same world, as it is now, in another folder."""
        twin = object.__new__(MaskedWorld)
        twin.__dict__.update(self.__dict__)
        twin.folder = self.folder.with_name(name)
        twin.home = ServerHome(twin.folder)
        shutil.copytree(self.folder, twin.folder)
        twin.silos = MaskedSilos(self.spec, self.layout, self.min_cohort)
        twin.silos.by_name = {
            n: MaskedSilo(n, s.weight, s.key, s.state, dict(s.spool), s.says) for n, s in self.silos.by_name.items()
        }
        return twin

    def office(self, store: Store) -> Office:
        world = self

        class Local(Office):
            def inquiry(self, _answer: object) -> Asking:  # type: ignore[override]
                return Asking(world.silos)

            def members(self, names: Sequence[str]) -> list[Member]:
                known, revoked = world.silos.by_name, world.silos.revoked
                here = [known[n] for n in names if n not in revoked]
                return [Member(s.name, 1, public_pem(s.key), s.key.public_key()) for s in here]

        road = Road(on_trouble=lambda: None)
        parts = (store, None, road, None, 1, threading.Event(), Turns(), set(), CA)
        return Local("r-1", self.spec, self.home, *parts)  # type: ignore[arg-type]

    def context(self, office: Office) -> tuple[RunContext, Checkpoint]:
        """As the last process has left it."""
        run = office.store.runs.get("r-1")
        if run.layout is not None:
            start = resume(office, run)
            return start.context, start.model
        context = office.context(self.layout, self.min_cohort, EMPTY)
        context.checkpoints.discard_after(-1)
        model = context.checkpoints.save(0, np.zeros(SIZE, np.float32), self.layout)
        layout = {
            "minimum": self.min_cohort,
            "parameters": [p.model_dump(mode="json") for p in layout_to_wire(self.layout)],
            "empty_sums": EMPTY.model_dump(mode="json"),
        }
        where = {"weights_path": str(model.path), "weights_sha256": model.sha256}
        office.store.runs.set_layout(run_id="r-1", layout=layout, **where)
        return context, model

    def live(self, *, closing: bool = True) -> str:
        """A process of the server, from its start until the run is over; returns the hash of the last weights."""
        store = self.open()
        try:
            office = self.office(store)
            context, model = self.context(office)
            for number in range(store.runs.get("r-1").rounds_committed + 1, self.rounds + 1):
                model = self.round(office, context, number, model).model
                context.checkpoints.prune(1)
            if closing:
                self.close(office, context, model)
            context.checkpoints.prune(1)
            return store.runs.get("r-1").weights_sha256 or ""
        finally:
            store.close()

    def close(self, office: Office, context: RunContext, model: Checkpoint) -> None:
        assert context.secure is not None
        members = office.members(sorted(self.silos.by_name))
        ask: Any = lambda: office.inquiry(EvaluateReply)  # noqa: E731
        masked_evaluation(context, context.secure, model, members, ask)

    def round(self, office: Office, context: RunContext, number: int, model: Checkpoint) -> RoundResult:
        """One round, begun again with a new step if it is lost."""
        assert context.secure is not None
        rows = [r for r in context.store.rounds.list("r-1") if r.number == number]
        begun = [r.step for r in rows if r.state is not RoundState.ABANDONED]
        members = office.members(sorted(self.silos.by_name))
        if begun:
            epoch, silos = context.secure.newest(), context.store.secure.step("r-1", begun[0])
            names = tuple(silos.silos) if silos else tuple(m.name for m in members)
            task = RoundTask(number, begun[0], model, names, epoch)
        else:
            epoch, names = context.secure.silos_for(number - 1, members)
            task = RoundTask(number, context.store.secure.next_step("r-1"), model, names, epoch)
        members = [m for m in members if m.name in task.roster]
        inquiry: Any = office.inquiry(TrainReply)
        try:
            return run_round(context, task, members, inquiry, Everybody(members), lambda *_: None)
        except RoundLost as lost:
            context.store.rounds.abandon(run_id="r-1", number=number, detail={"why": str(lost)})
            return self.round(office, context, number, model)

    def files(self) -> set[str]:
        """Every file but the database's own."""
        return {p.name for p in self.folder.rglob("*") if p.is_file() and not p.name.startswith("fedplat.db")}
