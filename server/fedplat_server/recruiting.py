"""The beginning of a run: who takes part, with which model, from which weights."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedplat.errors import FedplatError, LayoutError
from fedplat.metrics import MetricSums
from fedplat.params import Layout
from fedplat.reasons import LATER, Code, Reason
from fedplat.spec import RunSpec
from fedplat.wire.messages import JoinReply, layout_from_wire
from fedplat_server.exchange import Given, Inquiry
from fedplat_server.registry import Member, Registry
from fedplat_server.turns import Age, Claim, Turns

ASK_AGAIN_S = 5.0


class RunFailed(FedplatError):
    """A run that cannot go on; the message is its reason."""


class RunPaused(Exception):
    """The run cannot go on now, and waits for a person (`fedplat run continue`)."""

    def __init__(self, reason: str, code: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


@dataclass
class Answers:
    """What the silos have said so far."""

    accepted: dict[str, JoinReply] = field(default_factory=dict)
    refused: dict[str, Reason] = field(default_factory=dict)
    later: dict[str, float] = field(default_factory=dict)

    def take(self, given: Given[JoinReply]) -> None:
        """File one silo's answer."""
        reply = given.parcel.body
        reason = reply.failed or unusable(reply)
        if reason is None:
            self.accepted[given.silo] = reply
            self.refused.pop(given.silo, None)
            return
        self.refused[given.silo] = reason
        if reason.code in LATER:
            self.later[given.silo] = time.monotonic() + ASK_AGAIN_S

    def minimum(self, spec: RunSpec) -> int:
        """Of several minimums the largest holds."""
        secure = spec.secure_aggregation
        least = max(spec.silos.minimum, secure.min_cohort) if secure.enabled else spec.silos.minimum
        return max([least, *(r.min_cohort for r in self.accepted.values())])

    def refusals(self) -> str:
        """In one line."""
        return "; ".join(f"{silo}: {reason}" for silo, reason in sorted(self.refused.items()))


@dataclass(frozen=True)
class Recruiting:
    """Asks the silos of a run (`ask`), each when it is its turn. `report` hears each answer; `waiting` hears whom the
    run waits for, the minimum, and which older run is to have one of them first; `let_go` are the silos that may
    have joined and are given up, of which `release` hears."""

    spec: RunSpec
    ask: Callable[[Inquiry[JoinReply], Sequence[Member]], None]
    registry: Registry
    turns: Turns
    age: Age
    report: Callable[[str, JoinReply, Reason | None], None]
    waiting: Callable[[Sequence[str], int, str | None], None]
    release: Callable[[str], None]
    let_go: set[str]

    def gather(self, inquiry: Inquiry[JoinReply]) -> Answers:
        """Wait for the silos. RunFailed if the minimum can't be reached, RunPaused if it was not in time."""
        answers = Answers()
        asked: set[str] = set()
        begun = time.monotonic()
        try:
            while True:
                ready = self._claim(answers)
                self._give_way(inquiry, asked, answers)
                if ready:
                    self._ask(inquiry, asked, answers)
                for given in inquiry.answers(timeout_s=1.0):
                    answers.take(given)
                    self.report(given.silo, given.parcel.body, answers.refused.get(given.silo))
                if self._done(answers, asked, time.monotonic() - begun):
                    return answers
        finally:
            self.turns.leave(self.age)

    def _wanted(self) -> list[str]:
        return sorted(self.spec.silos.names or (m.name for m in self.registry.members()))

    def _missing(self, answers: Answers) -> list[str]:
        """Who may still take part."""
        final = [s for s, r in answers.refused.items() if r.code not in LATER]
        return [n for n in self._wanted() if n not in answers.accepted and n not in final]

    def _claim(self, answers: Answers) -> bool:
        """Whether enough silos are connected to begin with."""
        missing = self._missing(answers)
        busy = [s for s in missing if s in answers.refused and answers.refused[s].code is Code.BUSY]
        here = sum(map(self.registry.is_here, [*missing, *answers.accepted]))
        ready = here >= answers.minimum(self.spec)
        self.turns.claim(self.age, Claim(frozenset(missing), frozenset(busy), ready))
        return ready

    def _give_way(self, inquiry: Inquiry[JoinReply], asked: set[str], answers: Answers) -> None:
        # Also silos that have not been asked: they may have joined when an earlier process of this server asked.
        for silo in self.turns.owed(self.age) & {*self._wanted()} - self.let_go:
            inquiry.withdraw([silo])
            answers.accepted.pop(silo, None)
            asked.discard(silo)
            self.let_go.add(silo)
            self.release(silo)

    def _ask(self, inquiry: Inquiry[JoinReply], asked: set[str], answers: Answers) -> None:
        now = time.monotonic()
        again = {silo for silo, at in answers.later.items() if at <= now}
        taken = {*self.turns.ahead(self.age), *self.turns.owed(self.age)}
        names = [n for n in self._wanted() if (n not in asked or n in again) and n not in taken]
        members = [m for m in map(self.registry.member, names) if m is not None]
        for member in members:
            answers.later.pop(member.name, None)
            asked.add(member.name)
            self.let_go.discard(member.name)
        if members:
            self.ask(inquiry, members)

    def _done(self, answers: Answers, asked: set[str], waited_s: float) -> bool:
        minimum = answers.minimum(self.spec)
        enough = len(answers.accepted) >= minimum
        missing = self._missing(answers)
        if enough and (not missing or waited_s >= self.spec.silos.join_timeout_s):
            return True
        if not enough and not missing and asked:
            said = answers.refusals() or "nobody else is enrolled"
            raise RunFailed(f"{len(answers.accepted)} of at least {minimum} silos take part ({said})")
        if waited_s >= self.spec.silos.wait_s:
            said = "; ".join(f"{s}: {answers.refused.get(s, 'no answer')}" for s in missing)
            have = f"{len(answers.accepted)} of at least {minimum} silos take part after {waited_s:.0f} s"
            raise RunPaused(f"{have} ({said or 'nobody else is enrolled'})", "too_few_silos")
        ahead = self.turns.ahead(self.age)
        self.waiting(missing, minimum, next((ahead[s] for s in missing if s in ahead), None))
        return False


@dataclass(frozen=True)
class Agreement:
    """The model that the silos agree on, and who does not. `empty_sums`: its task's metric sums over no records, if
    they are to be masked."""

    layout: Layout
    members: tuple[str, ...]
    excluded: Mapping[str, Reason]
    empty_sums: MetricSums | None = None


def agree(spec: RunSpec, accepted: Mapping[str, JoinReply], init_layout: str | None = None) -> Agreement:
    """Same task, same layout, same frozen weights: the reference is the init file, else the spec, else the most
    common; silos that differ are excluded by name. RunFailed if no reference is the most common."""
    left = dict(accepted)
    excluded: dict[str, Reason] = {}
    layouts = {silo: layout_from_wire(reply.layout) for silo, reply in accepted.items()}
    task = spec.task.name
    checks: list[tuple[str, Callable[[str], str], str | None, Reason]] = [
        ("task", lambda s: accepted[s].task_hash, None, Reason.of(Code.TASK_VERSION, task=task)),
        (
            "model layout",
            lambda s: layouts[s].fingerprint,
            init_layout or spec.model.fingerprint or None,
            Reason.of(Code.LAYOUT_DIFFERS),
        ),
        ("frozen parameters", lambda s: accepted[s].frozen_hash, None, Reason.of(Code.FROZEN_DIFFERS)),
        ("metric sums", lambda s: repr(accepted[s].empty_sums), None, Reason.of(Code.TASK_VERSION, task=task)),
    ]
    for what, value_of, pinned, reason in checks:
        values = {silo: value_of(silo) for silo in left}
        reference = pinned or _most_common(values, what)
        for silo in [s for s, v in values.items() if v != reference]:
            excluded[silo] = reason
            del left[silo]
    if not left:
        raise RunFailed("no silo has the model that the run asks for: " + ", ".join(sorted(excluded)))
    members = tuple(sorted(left))
    return Agreement(layouts[members[0]], members, excluded, accepted[members[0]].empty_sums)


def _most_common(values: Mapping[str, str], what: str) -> str:
    ranked = Counter(values.values()).most_common(2)
    if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
        raise RunFailed(f"{Reason.of(Code.NO_MAJORITY, what=what)}: {', '.join(sorted(values))}")
    return ranked[0][0] if ranked else ""


def unusable(reply: JoinReply) -> Reason | None:
    """A layout that makes no sense is a message that makes no sense."""
    try:
        layout = layout_from_wire(reply.layout)
    except LayoutError:
        return Reason.of(Code.MESSAGE_INVALID)
    return None if layout.size else Reason.of(Code.MESSAGE_INVALID)
