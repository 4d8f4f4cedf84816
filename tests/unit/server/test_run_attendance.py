"""What a run makes of silos that answer oddly or are away, and of rounds that are lost again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedplat.errors import StoreUnavailableError
from fedplat.metrics import MetricSums
from fedplat.reasons import Code, Reason
from fedplat.spec import Weighting
from fedplat.wire.codec import Parcel
from fedplat.wire.messages import TrainReply, TrainRequest
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.context import RoundLost, RoundTask, RunContext
from fedplat_server.driver import MAX_LOST, MAX_OUTAGES, RunDriver
from fedplat_server.exchange import Given
from fedplat_server.recruiting import RunFailed, RunPaused
from fedplat_server.registry import Member
from fedplat_server.road import Road
from fedplat_server.rounds import RoundResult, run_round
from fedplat_server.staging import Staging
from fedplat_server.store import RunSiloState, Split, open_store
from fedplat_server.strategies import make_strategy
from fedplat_server.transitions import RoundState, RunState, SiloRoundState
from fedplat_server.turns import Turns
from tests.faults.test_server_writes import SILOS, SIZE, World
from tests.support.silos import enrol_silos

LOSS = MetricSums(counts={"examples": [5]}, totals={"loss": 2.5})
ODD = MetricSums(counts={"examples": [5], "correct": [3]}, totals={"loss": 2.5})


@dataclass
class Script:
    """Silos that answer what is written here, each time the next; then they say nothing. Also their attendance: who is
    lost is back at once, if `returns`."""

    says: dict[str, list[Code | MetricSums]]
    returns: bool = True
    open: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    away: list[tuple[str, Code]] = field(default_factory=list)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        return tuple(self.open)

    def ask(self, members: Sequence[Member], question: TrainRequest, _vector: object) -> None:
        self.asked += [m.name for m in members]
        self.open += [m.name for m in members]

    def answers(self, _timeout_s: float) -> list[Given[TrainReply]]:
        ready = [s for s in self.open if self.says[s]]
        self.open = [s for s in self.open if s not in ready]
        return [Given(s, self._parcel(s, self.says[s].pop(0))) for s in ready]

    def _parcel(self, silo: str, said: Code | MetricSums) -> Parcel[TrainReply]:
        facts: dict[str, Any] = {"run": "r-1", "silo": silo, "round": 1, "step": 1}
        if isinstance(said, Code):
            return Parcel(TrainReply(**facts, failed=Reason.of(said)))
        return Parcel(TrainReply(**facts, trained=said), np.full(SIZE, 0.5, np.float32).tobytes())

    def lost(self, silo: str, reason: Reason) -> None:
        self.away.append((silo, reason.code))

    def present(self) -> list[Member]:
        return members() if self.returns else []


def members() -> list[Member]:
    made: Any = (1, "", None)
    return [Member(name, *made) for name in SILOS]


class Round:
    """One round of two silos. `minimum` of them are needed; `patience_s`: the time until it goes on, or gives up."""

    def __init__(self, folder: Path, minimum: int = 2, patience_s: float = 0.2) -> None:
        world = World(folder / "world", "in the message")
        self.store = open_store(world.url)
        spec = world.spec.model_copy(
            update={
                "rounds": world.spec.rounds.model_copy(update={"timeout_s": patience_s}),
                "silos": world.spec.silos.model_copy(update={"wait_s": patience_s}),
            }
        )
        checkpoints = Checkpoints(world.home.checkpoints("r-1"), spec.hash)
        self.model = checkpoints.save(0, np.zeros(SIZE, np.float32), world.layout)
        parts = (make_strategy(spec), checkpoints, Staging(folder / "staging"), Road(lambda: None))
        self.context = RunContext("r-1", spec, world.layout, minimum, self.store, *parts)

    def run(self, script: Script, roster: Sequence[str] = SILOS) -> RoundResult:
        made: Any = script
        there = [m for m in members() if m.name in roster]
        task = RoundTask(1, 1, self.model, SILOS)
        return run_round(self.context, task, there, made, made, lambda *_: None)

    def parts(self) -> dict[str, tuple[SiloRoundState, str | None]]:
        return {p.silo_name: (p.state, p.reason_code) for p in self.store.rounds.silo_rounds("r-1", 1)}


def test_a_silo_that_is_back_is_asked_again_in_the_same_round(tmp_path: Path) -> None:
    work = Round(tmp_path, patience_s=10)
    script = Script({"silo-a": [LOSS], "silo-b": [Code.NOT_JOINED, Code.PAUSED, LOSS]})
    assert work.run(script).cohort == SILOS
    assert script.asked == ["silo-a", "silo-b", "silo-b", "silo-b"]
    assert script.away == [("silo-b", Code.NOT_JOINED), ("silo-b", Code.PAUSED)]
    assert work.parts()["silo-b"][0] is SiloRoundState.INCLUDED
    work.store.close()


def test_enough_updates_do_not_wait_for_a_paused_silo(tmp_path: Path) -> None:
    work = Round(tmp_path, minimum=1, patience_s=1000)
    result = work.run(Script({"silo-a": [LOSS], "silo-b": [Code.PAUSED]}, returns=False))
    assert result.cohort == ("silo-a",)
    assert work.parts()["silo-b"] == (SiloRoundState.MISSED, "paused")
    work.store.close()


@pytest.mark.parametrize("code", [Code.PAUSED, Code.NO_ANSWER, Code.WORKERS_FAILED, Code.REVOKED])
def test_what_may_pass_pauses_the_run_and_is_named(tmp_path: Path, code: Code) -> None:
    says: list[Code | MetricSums] = [] if code is Code.NO_ANSWER else [code]
    work = Round(tmp_path)
    with pytest.raises(RunPaused, match="round 1 has updates of 1 of at least 2 silos after 0 s") as paused:
        work.run(Script({"silo-a": [LOSS], "silo-b": says}, returns=False))
    assert f"(silo-b: {Reason(code=code)})" in str(paused.value)
    assert work.store.rounds.list("r-1")[0].state is RoundState.TRAINING
    work.store.close()


@pytest.mark.parametrize("code", [Code.TASK_FAILED, Code.UPDATE_NOT_FINITE, Code.MESSAGE_INVALID])
def test_what_no_waiting_mends_fails_the_run(tmp_path: Path, code: Code) -> None:
    work = Round(tmp_path)
    with pytest.raises(RunFailed, match="silo-b: "):
        work.run(Script({"silo-a": [LOSS], "silo-b": [code]}))
    work.store.close()


def test_a_silo_that_counts_itself_for_more_than_the_spec_says_fails(tmp_path: Path) -> None:
    work = Round(tmp_path, minimum=1, patience_s=10)
    weights = {"weighting": Weighting.DECLARED, "weights": {"silo-a": 1.0, "silo-b": 0.25}}
    strategy = work.context.spec.strategy.model_copy(update=weights)
    work.context = replace(work.context, spec=work.context.spec.model_copy(update={"strategy": strategy}))
    assert work.run(Script({"silo-a": [LOSS], "silo-b": [LOSS]})).cohort == ("silo-a",)
    assert work.parts()["silo-b"] == (SiloRoundState.FAILED, "message_invalid")
    work.store.close()


def test_a_silo_that_is_away_may_come_in_place_of_one_that_fails(tmp_path: Path) -> None:
    work = Round(tmp_path, minimum=2)
    enrol_silos(work.store, "silo-c")
    work.store.runs.join(run_id="r-1", silo_name="silo-c", state=RunSiloState.AWAY)
    with pytest.raises(RunPaused):
        work.run(Script({"silo-a": [LOSS], "silo-b": [Code.TASK_FAILED]}))
    work.store.close()


def test_a_silo_of_the_roster_that_is_not_enrolled_any_more_is_revoked(tmp_path: Path) -> None:
    work = Round(tmp_path, minimum=1, patience_s=1000)
    assert work.run(Script({"silo-a": [LOSS]}), roster=("silo-a",)).cohort == ("silo-a",)
    assert work.parts()["silo-b"] == (SiloRoundState.FAILED, "revoked")
    work.store.close()


def test_sums_of_another_shape_are_left_out_and_named(tmp_path: Path) -> None:
    work = Round(tmp_path, patience_s=10)
    work.run(Script({"silo-a": [LOSS], "silo-b": [ODD]}))
    [found] = work.store.rounds.evaluations("r-1")
    [event] = [e for e in work.store.events.list(run_id="r-1") if e.kind == "metrics.left_out"]
    left_out = next(iter({*SILOS} - {*found.silos}))
    assert len(found.silos) == 1
    assert (event.silo_name, event.detail["round"], event.detail["split"]) == (left_out, 1, Split.TRAIN)
    work.store.close()


@pytest.mark.parametrize(
    ("trouble", "times", "code"),
    [
        (RoundLost("its files are gone"), MAX_LOST, "round_lost"),
        (StoreUnavailableError("full"), MAX_OUTAGES, "database"),
    ],
)
def test_a_round_that_is_interrupted_again_and_again_pauses_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception, times: int, code: str
) -> None:
    world = World(tmp_path / "world", "in the message")
    store = open_store(world.url)
    link: Any = type("NoLink", (), {"open_run": lambda _: 1, "close_run": lambda *_: None})()
    parts: Any = (None, store, link, None, None, Turns(), lambda *_: "")
    driver = RunDriver("r-1", world.spec, *parts)
    seen: list[int] = []

    def live_through(_driver: RunDriver, _office: object) -> None:
        seen.append(1)
        assert len(seen) <= times
        store.rounds.open(run_id="r-1", number=1, step=len(seen), roster=SILOS) if code == "round_lost" else None
        raise trouble

    monkeypatch.setattr(RunDriver, "_live_through", live_through)
    monkeypatch.setattr(type(store), "wait_until_back", lambda *_: True)
    driver.drive()
    run = store.runs.get("r-1")
    assert (run.state, run.reason_code, len(seen)) == (RunState.PAUSED, code, times)
    assert str(trouble) in str(run.reason)
    store.close()
