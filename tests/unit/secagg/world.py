"""Silos with a disk each, and a server that may lie: whole rounds without I/O.

A silo's state is read from its JSON before every request and replaced before the answer leaves, so that nothing lives
in memory only. `crash_at` names the writes at which a silo dies, before or after the write.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.identity.keys import fingerprint, new_key
from fedplat.secagg import prg, silo
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.fixedpoint import Segment, VectorFormat, limit_for
from fedplat.secagg.messages import (
    AgreeAnswer,
    AgreeQuestion,
    Member,
    Part,
    Roster,
    SignedKey,
    TrainPart,
    UnmaskAnswer,
    UnmaskQuestion,
)
from fedplat.secagg.roster import RunBinding, make_roster, roster_hash
from fedplat.secagg.rules import SiloRules
from fedplat.secagg.server import ServerStep
from fedplat.secagg.state import SiloState, open_run
from fedplat.secagg.terms import StepTerms
from fedplat.secagg.thresholds import smallest_cohort

LENGTH = 37
BINDING = RunBinding(ca_fingerprint="ca" * 32, run="run-1", spec_hash="5e" * 32)
AnyPart = TypeVar("AnyPart", bound=Part)
Answer = TypeVar("Answer")
P = ParamSpec("P")


class Crash(Exception):
    """The silo's process died."""


@functools.cache
def identity(number: int) -> ec.EllipticCurvePrivateKey:
    return new_key()


def name_of(number: int) -> str:
    return f"silo-{number:02}"


def travel(part: AnyPart) -> AnyPart:
    """The part as the other side reads it."""
    return type(part).model_validate_json(part.model_dump_json())


def update_of(number: int, round_number: int = 1, n_max: int = 64, length: int = LENGTH) -> prg.Words:
    """A quantised update, with coordinates at both ends."""
    limit = limit_for(n_max)
    values = np.random.default_rng([number, round_number]).integers(-limit, limit + 1, length)
    values[:2] = limit, -limit
    return values.astype(np.int32).view(np.uint32)


@dataclass
class Silo:
    """A hospital: its identity, its policy, what is on its disk."""

    number: int
    rules: SiloRules
    disk: str | None = None
    spool: dict[int, prg.Words] = field(default_factory=dict)
    crash_at: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return name_of(self.number)

    def insists(self, **rules: Any) -> None:
        """Changes what the silo insists on."""
        self.rules = replace(self.rules, **rules)

    @property
    def state(self) -> SiloState:
        return open_run(SiloState.from_json(self.disk) if self.disk else None, BINDING, self.name)

    def write(self, state: SiloState) -> None:
        crash = self.crash_at.pop() if self.crash_at else ""
        if crash == "before":
            raise Crash
        self.disk = state.to_json()
        if crash == "after":
            raise Crash

    def key(self, epoch: int) -> SignedKey:
        state, key = silo.offer_key(self.state, identity(self.number), epoch)
        self.write(state)
        return travel(key)

    def take(self, roster: Roster) -> None:
        self.write(silo.accept_roster(self.state, self.rules, roster))

    def train(self, terms: StepTerms, round_number: int = 1) -> tuple[prg.Words, TrainPart]:
        update = self.spool.setdefault(round_number, update_of(self.number, round_number, terms.vector.n_max)).copy()
        state, part = silo.begin_step(self.state, self.rules, terms, update)
        self.write(state)
        silo.mask(self.state, terms.step, update)
        return update, travel(part)

    def agree(self, question: AgreeQuestion) -> AgreeAnswer:
        state, answer = silo.agree(self.state, self.rules, identity(self.number), travel(question))
        self.write(state)
        return travel(answer)

    def unmask(self, question: UnmaskQuestion) -> UnmaskAnswer:
        return travel(silo.unmask(self.state, travel(question)))


@dataclass
class World:
    """Silos in roster order, and the server's roster."""

    silos: list[Silo]
    roster: Roster
    strong: bool = False

    def __getitem__(self, name: str) -> Silo:
        return next(s for s in self.silos if s.name == name)

    @property
    def names(self) -> list[str]:
        return [s.name for s in self.silos]

    def terms(self, step: int = 1, silos: Sequence[str] | None = None, weights: str = "aa" * 32) -> StepTerms:
        vector = VectorFormat(64, (Segment(LENGTH - 4, 1.0), Segment(4, None)))
        names = tuple(self.names if silos is None else silos)
        return StepTerms(step, names, self.strong, weights, "bb" * 32, "cc" * 32, vector)

    def server(self, terms: StepTerms) -> ServerStep:
        context = terms.context(roster_hash(BINDING, self.roster))
        return ServerStep(self.roster, context, terms, max(s.rules.min_cohort for s in self.silos))

    def new_epoch(self, epoch: int, first_step: int, members: Iterable[str] | None = None) -> None:
        """Fresh keys from everybody who takes part."""
        chosen = [self[name] for name in (self.names if members is None else members)]
        enrolled = {s.name: fingerprint(identity(s.number).public_key()) for s in chosen}
        self.roster = travel(make_roster(BINDING, epoch, first_step, [s.key(epoch) for s in chosen], enrolled))
        for member in chosen:
            member.take(self.roster)


def build(num_silos: int, *, strong: bool = False, min_cohort: int | None = None) -> World:
    """A federation whose silos have accepted the roster of epoch 1; known to each other by fingerprint."""
    min_cohort = min(3, num_silos) if min_cohort is None else min_cohort
    roster, disks = _begun(num_silos, min_cohort)
    silos = [Silo(i, _rules(num_silos, min_cohort), disk) for i, disk in enumerate(disks)]
    return World(silos, roster, strong)


def known_of(num_silos: int) -> dict[str, str]:
    return {name_of(i): fingerprint(identity(i).public_key()) for i in range(num_silos)}


def _rules(num_silos: int, min_cohort: int) -> SiloRules:
    return SiloRules(known=known_of(num_silos), min_cohort=min_cohort)


@functools.cache
def _begun(num_silos: int, min_cohort: int) -> tuple[Roster, tuple[str, ...]]:
    rules = _rules(num_silos, min_cohort)
    world = World([Silo(i, rules) for i in range(num_silos)], None)  # type: ignore[arg-type]
    world.new_epoch(1, 1)
    return world.roster, tuple(s.disk or "" for s in world.silos)


@dataclass(frozen=True)
class Drops:
    """Who is silent in each phase."""

    train: frozenset[str] = frozenset()
    agree: frozenset[str] = frozenset()
    unmask: frozenset[str] = frozenset()


def run_step(
    world: World,
    terms: StepTerms,
    drops: Drops = Drops(),
    round_number: int = 1,
    shuffle: random.Random | None = None,
) -> prg.Words:
    """One step at an honest server; returns the opened sum. With `shuffle`: any order, repeats and late answers."""
    server = world.server(terms)
    uploads = {}
    parts: dict[str, TrainPart] = {}
    for name in _calls(terms.silos, drops.train, shuffle):
        uploads[name], parts[name] = insist(world[name].train, terms, round_number)
        server.check_upload(name, parts[name])
    cohort = server.fix_cohort(parts)
    agreed = agree_all(world, server, cohort, parts, drops.agree, shuffle)
    answers = unmask_all(world, server, cohort, parts, server.unmask_question(cohort, agreed), drops.unmask, shuffle)
    total = sum_of(uploads[m.name] for m in cohort)
    prg.apply(total, server.streams(cohort, parts, answers))
    return total


def agree_all(
    world: World,
    server: ServerStep,
    cohort: Sequence[Member],
    parts: Mapping[str, TrainPart],
    silent: frozenset[str] = frozenset(),
    shuffle: random.Random | None = None,
) -> dict[str, AgreeAnswer]:
    agreed: dict[str, AgreeAnswer] = {}
    for name in _calls([m.name for m in cohort], silent, shuffle):
        question = server.agree_question(name, cohort, parts)
        answer = insist(world[name].agree, question)
        assert agreed.setdefault(name, answer) == answer
        server.check_agreement(name, cohort, answer)
    return agreed


def unmask_all(
    world: World,
    server: ServerStep,
    cohort: Sequence[Member],
    parts: Mapping[str, TrainPart],
    question: UnmaskQuestion,
    silent: frozenset[str] = frozenset(),
    shuffle: random.Random | None = None,
) -> dict[str, UnmaskAnswer]:
    answers: dict[str, UnmaskAnswer] = {}
    # Who has not seen the cohort yet is asked for its agreement first.
    for name in _calls([m.name for m in cohort if world[m.name].state.record.agreed], silent, shuffle):  # type: ignore[union-attr]
        answer = world[name].unmask(question)
        assert answers.setdefault(name, answer) == answer
        server.check_answer(name, cohort, parts, answer)
    return answers


def sum_of(vectors: Iterable[prg.Words]) -> prg.Words:
    total = np.zeros(LENGTH, np.uint32)
    for vector in vectors:
        total += vector
    return total


def plain_sum(names: Iterable[str], round_number: int = 1) -> prg.Words:
    return sum_of(update_of(int(name[-2:]), round_number) for name in names)


def most_drops(world: World, terms: StepTerms, phase: str) -> Drops:
    """As many silent silos as the thresholds allow, from one phase on."""
    t = terms.threshold
    lowest = smallest_cohort(len(terms.silos), world.strong, world.silos[0].rules.min_cohort)
    gone = {"train": terms.silos[lowest:], "agree": terms.silos[t:], "unmask": terms.silos[: len(terms.silos) - t]}
    return Drops(**{phase: frozenset(gone[phase])})


def _calls(names: Sequence[str], silent: frozenset[str], shuffle: random.Random | None) -> list[str]:
    calls = [name for name in names if name not in silent]
    if shuffle:
        calls += [name for name in calls if shuffle.random() < 0.3]
        shuffle.shuffle(calls)
    return calls


def insist(ask: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer:
    """Asks again when the silo dies; it starts again from its disk."""
    while True:
        try:
            return ask(*args, **kwargs)
        except Crash:
            continue


def refused(refusal: Refusal, ask: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        ask(*args, **kwargs)
    assert caught.value.refusal == refusal
    return caught.value


def upload_all(world: World, terms: StepTerms) -> tuple[dict[str, prg.Words], dict[str, TrainPart]]:
    done = {name: world[name].train(terms) for name in terms.silos}
    return {name: y for name, (y, _) in done.items()}, {name: part for name, (_, part) in done.items()}


def members(parts: Mapping[str, TrainPart], names: Iterable[str]) -> tuple[Member, ...]:
    return tuple(Member(name=name, upload_id=parts[name].upload_id) for name in sorted(names))
