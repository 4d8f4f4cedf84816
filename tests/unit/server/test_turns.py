"""Runs that recruit the same silos at the same time: nobody waits in a circle, and nobody blocks who needs not."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec, parse_spec
from fedplat.wire.codec import Parcel
from fedplat.wire.messages import JoinReply, WireParameter
from fedplat_server import recruiting as recruiting_module
from fedplat_server.exchange import Given
from fedplat_server.recruiting import Answers, Recruiting, RunPaused
from fedplat_server.registry import Member
from fedplat_server.turns import Turns
from tests.support.federation import add_constant

WEIGHT = WireParameter.model_validate({"name": "w", "shape": (1,), "dtype": "float32", "group": "shared"})


@dataclass
class Town:
    """Silos that take part in one run at a time. `holds`: which; who is in `absent` does not answer."""

    holds: dict[str, str]
    absent: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def members(self) -> list[Member]:
        return [self.member(name) for name in sorted(self.holds)]

    def member(self, name: str) -> Member:
        made: Any = (name, 1, "", None)
        return Member(*made)

    def is_here(self, name: str) -> bool:
        return name not in self.absent

    def answer(self, run: str, silo: str) -> JoinReply | None:
        with self.lock:
            if silo in self.absent:
                return None
            if self.holds[silo] not in ("", run):
                return JoinReply(run=run, silo=silo, failed=Reason.of(Code.BUSY))
            self.holds[silo] = run
            return JoinReply(run=run, silo=silo, layout=(WEIGHT,))

    def free(self, run: str, silo: str) -> None:
        with self.lock:
            if self.holds[silo] == run:
                self.holds[silo] = ""


@dataclass
class Asking:
    """A question to the town."""

    town: Town
    run: str
    open: list[str] = field(default_factory=list)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        return tuple(self.open)

    def ask(self, members: Sequence[Member], _request: object) -> None:
        self.open += [m.name for m in members]

    def withdraw(self, silos: Sequence[str]) -> None:
        self.open = [s for s in self.open if s not in silos]

    def answers(self, timeout_s: float) -> list[Given[JoinReply]]:
        time.sleep(0.01)
        found = [(s, self.town.answer(self.run, s)) for s in self.open]
        self.open = [s for s, reply in found if reply is None]
        return [Given(s, Parcel(reply)) for s, reply in found if reply is not None]


@dataclass
class Run:
    """Recruits in a thread, and is over as soon as it has all it wants."""

    town: Town
    turns: Turns
    name: str
    silos: tuple[str, ...]
    wait_s: float = 10
    got: list[str] = field(default_factory=list)
    behind: set[str | None] = field(default_factory=set)
    failure: list[Exception] = field(default_factory=list)

    def spec(self) -> RunSpec:
        return parse_spec(add_constant(silos=self.silos, minimum=len(self.silos), wait_s=self.wait_s))

    def start(self) -> Run:
        self.thread = threading.Thread(target=self._recruit, daemon=True)
        self.thread.start()
        return self

    def _recruit(self) -> None:
        town = self.town
        ask: Any = lambda inquiry, members: inquiry.ask(members, None)  # noqa: E731
        made: Any = {"registry": town, "ask": ask, "report": lambda *_: None, "let_go": set()}
        recruiting = Recruiting(
            **made,
            spec=self.spec(),
            turns=self.turns,
            age=("", self.name),
            waiting=lambda _missing, _minimum, behind: self.behind.add(behind),
            release=lambda silo: town.free(self.name, silo),
        )
        asking: Any = Asking(town, self.name)
        try:
            answers: Answers = recruiting.gather(asking)
        except RunPaused as paused:
            self.failure.append(paused)
            return
        self.got = sorted(answers.accepted)
        for silo in self.got:
            town.free(self.name, silo)

    def ends(self) -> list[str]:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.got


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recruiting_module, "ASK_AGAIN_S", 0.02)


def test_two_runs_that_hold_a_silo_each_do_not_wait_for_each_other() -> None:
    town, turns = Town({"a": "r-1", "b": "r-2"}), Turns()
    runs = [Run(town, turns, name, ("a", "b")).start() for name in ("r-1", "r-2")]
    assert [run.ends() for run in runs] == [["a", "b"]] * 2
    assert "r-1" in runs[1].behind
    assert runs[0].behind <= {None}


def test_circles_of_many_runs_end() -> None:
    silos = ("a", "b", "c", "d")
    town, turns = Town({"a": "r-4", "b": "r-1", "c": "r-2", "d": "r-3"}), Turns()
    names = [f"r-{number}" for number in range(1, 9)]
    runs = [Run(town, turns, n, (silos[i % 4], silos[(i + 1) % 4])).start() for i, n in enumerate(names)]
    assert all(len(run.ends()) == 2 for run in runs)


def test_who_waits_for_an_absent_silo_does_not_block_who_does_not_need_it() -> None:
    town, turns = Town({"a": "", "x": ""}, absent={"x"}), Turns()
    waits = Run(town, turns, "r-1", ("a", "x")).start()
    assert Run(town, turns, "r-2", ("a",)).start().ends() == ["a"]
    town.absent.clear()
    assert waits.ends() == ["a", "x"]


def test_a_silo_that_leaves_in_the_middle_lets_the_others_go_on() -> None:
    town, turns = Town({"a": "r-1", "x": "r-0"}), Turns()
    waits = Run(town, turns, "r-1", ("a", "x")).start()
    time.sleep(0.1)
    assert town.holds["a"] == "r-1"
    town.absent = {"x"}
    assert Run(town, turns, "r-2", ("a",)).start().ends() == ["a"]
    town.absent.clear()
    town.free("r-0", "x")
    assert waits.ends() == ["a", "x"]


def test_a_run_that_has_waited_long_enough_is_paused_and_says_for_whom() -> None:
    town, turns = Town({"a": "", "x": ""}, absent={"x"}), Turns()
    run = Run(town, turns, "r-1", ("a", "x"), wait_s=0.1).start()
    run.ends()
    assert "0 of at least 2 silos take part after 0 s (a: no answer; x: no answer)" in str(run.failure[0])
    assert not turns.ahead(("", "r-2"))
