"""Rounds with secure aggregation: the right sum whoever vanishes, and nothing that a rule forbids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedplat.identity import new_key
from fedplat.reasons import Code, Reason
from fedplat.secagg.errors import Refusal
from fedplat.secagg.figures import Figures
from fedplat.secagg.state import open_run
from fedplat.wire.messages import AgreeRequest, KeysRequest, Request, TrainReply, TrainRequest, UnmaskRequest
from fedplat_server.context import RoundLost, RoundTask
from fedplat_server.driver import RunDriver
from fedplat_server.recruiting import RunPaused
from fedplat_server.rounds import run_round
from fedplat_server.store import Store
from tests.support.maskedworld import SAYS_NOTHING, SIZE, Everybody, MaskedWorld

FOUR = {"silo-a": 3, "silo-b": 1, "silo-c": 2, "silo-d": 10}


def mean(world: MaskedWorld, names: list[str], number: int) -> np.ndarray:
    """The weighted mean of updates in clear."""
    silos = [world.silos.by_name[name] for name in names]
    return np.sum([s.weight * s.update(number).astype(np.float64) for s in silos], axis=0) / sum(
        s.weight for s in silos
    )


@contextmanager
def opened(world: MaskedWorld) -> Iterator[Store]:
    store = world.open()
    try:
        yield store
    finally:
        store.close()


def weights(world: MaskedWorld) -> np.ndarray:
    with opened(world) as store:
        context, model = world.context(world.office(store))
        assert context.secure is not None
        return model.weights.vector()


def silent(kind: type[Request], *, after: int = 0):
    """A silo that says nothing to this kind of question, from the `after`-th on."""
    seen = [0]

    def says(asked: Request) -> str | None:
        seen[0] += isinstance(asked, kind)
        return SAYS_NOTHING if isinstance(asked, kind) and seen[0] > after else None

    return says


@pytest.mark.parametrize("num_silos", [2, 3, 5])
def test_the_model_is_that_of_the_updates_in_clear(tmp_path: Path, num_silos: int) -> None:
    world = MaskedWorld(tmp_path / "w", {f"silo-{i}": i + 1 for i in range(num_silos)})
    world.live()
    names = list(world.silos.by_name)
    expected = mean(world, names, 1) + mean(world, names, 2)
    assert np.abs(weights(world) - expected).max() < 1e-5
    with opened(world) as store:
        for row in store.rounds.list("r-1"):
            assert row.cohort == names
        tests = [e for e in store.rounds.evaluations("r-1") if e.split == "test"]
        assert [e.round_number for e in tests] == [0, 1, 2]
        for e in tests:
            assert (e.num_examples, e.silos) == (sum(range(1, num_silos + 1)), names)
            assert e.loss == pytest.approx(1 / (e.round_number + 1))
        steps = store.secure.steps("r-1")
        assert [s.closing for s in steps] == [False, False, True]
        assert all(s.dropped == [] and s.num_confirmed == 1 and s.seconds_unmasking is not None for s in steps)


@pytest.mark.parametrize("kind", [TrainRequest, AgreeRequest, UnmaskRequest])
def test_a_silo_may_vanish_at_any_moment(tmp_path: Path, kind: type[Request]) -> None:
    world = MaskedWorld(tmp_path / "w", FOUR, rounds=1)
    world.silos.by_name["silo-b"].says = silent(kind)
    world.live(closing=False)
    cohort = ["silo-a", "silo-c", "silo-d"] if kind is TrainRequest else list(FOUR)
    assert np.abs(weights(world) - mean(world, cohort, 1)).max() < 1e-6
    with opened(world) as store:
        [step] = store.secure.steps("r-1")
        assert [name for name, _ in step.cohort or ()] == cohort
        assert step.dropped == [name for name in FOUR if name not in cohort]


def test_below_the_threshold_a_cohort_is_asked_again_and_no_other_is_opened(tmp_path: Path) -> None:
    """Two of four help in the first step: three are needed. The next step has the same weights, so the same cohort."""
    world = MaskedWorld(tmp_path / "w", FOUR, rounds=1)
    for name in ("silo-b", "silo-c"):
        world.silos.by_name[name].says = silent_once(UnmaskRequest)
    world.live(closing=False)
    with opened(world) as store:
        first, second = store.secure.steps("r-1")
        assert [n for n, _ in first.cohort or ()] == [n for n, _ in second.cohort or ()] == list(FOUR)
        assert first.cohort != second.cohort, "other upload ids"
        kinds = [e.kind for e in store.events.list(run_id="r-1")]
        assert kinds.count("round.abandoned") == 1
    assert np.abs(weights(world) - mean(world, list(FOUR), 1)).max() < 1e-6


def silent_once(kind: type[Request]):
    """A silo that does not help in the first step that it is asked in."""
    first: list[int] = []

    def says(asked: Request) -> str | None:
        if not isinstance(asked, kind):
            return None
        first[:] = first or [asked.question.step]
        return SAYS_NOTHING if asked.question.step == first[0] else None

    return says


def test_a_silo_that_lost_its_keys_costs_a_round_and_begins_an_epoch(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", FOUR, rounds=3)
    with opened(world) as store:
        office = world.office(store)
        context, model = world.context(office)
        model = world.round(office, context, 1, model).model
        lost = world.silos.by_name["silo-c"]
        lost.state = open_run(None, lost.state.binding, lost.name)
        model = world.round(office, context, 2, model).model
        model = world.round(office, context, 3, model).model
        rows = store.rounds.list("r-1")
        assert [len(row.cohort) for row in rows] == [4, 3, 4]
        parts = {p.silo_name: p for p in store.rounds.silo_rounds("r-1", 2)}
        assert parts["silo-c"].reason_code == Code.MASKING_STATE
        steps = store.secure.steps("r-1")
        assert [s.epoch for s in steps] == [1, 1, 2]


def test_when_too_many_lost_their_keys_the_round_itself_is_begun_again(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", FOUR, rounds=1)
    with opened(world) as store:
        office = world.office(store)
        context, model = world.context(office)
        assert context.secure is not None
        context.secure.epoch_for(office.members(sorted(FOUR)))
        for name in ("silo-b", "silo-c"):
            lost = world.silos.by_name[name]
            lost.state = open_run(None, lost.state.binding, lost.name)
        world.round(office, context, 1, model)
        assert [s.epoch for s in store.secure.steps("r-1")] == [1, 2]
        assert store.rounds.list("r-1")[0].cohort == list(FOUR)


def test_a_late_comer_begins_an_epoch(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", FOUR, rounds=2)
    late = world.silos.by_name.pop("silo-d")
    with opened(world) as store:
        office = world.office(store)
        context, model = world.context(office)
        model = world.round(office, context, 1, model).model
        world.silos.by_name["silo-d"] = late
        world.round(office, context, 2, model)
        assert [(s.epoch, len(s.cohort or ())) for s in store.secure.steps("r-1")] == [(1, 3), (2, 4)]
    assert (
        np.abs(weights(world) - mean(world, ["silo-a", "silo-b", "silo-c"], 1) - mean(world, list(FOUR), 2)).max()
        < 1e-5
    )


def test_one_silo_that_saw_another_model_is_left_out_by_name(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", FOUR, rounds=1)
    honest = world.silos.answer
    other = np.ones(SIZE, np.float32).tobytes()

    def answer(name: str, asked: Request, buffer: bytes):
        return honest(name, asked, other if name == "silo-b" and isinstance(asked, TrainRequest) else buffer)

    world.silos.answer = answer  # type: ignore[method-assign]
    world.live(closing=False)
    with opened(world) as store:
        parts = {p.silo_name: p for p in store.rounds.silo_rounds("r-1", 1)}
        assert parts["silo-b"].reason_code == Code.MASKING_REFUSED
        assert parts["silo-b"].reason is not None
        assert parts["silo-b"].reason["words"] == {"rule": Refusal.CHECKS_DIFFER}
    assert np.abs(weights(world) - mean(world, ["silo-a", "silo-c", "silo-d"], 1)).max() < 1e-6


def test_a_silo_that_offers_no_key_is_not_asked_again_and_again(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", FOUR, rounds=3)
    asked: list[Request] = []

    def says(request: Request) -> Reason | None:
        asked.append(request)
        return Reason.of_refusal(Refusal.RUN_CHANGED) if isinstance(request, KeysRequest) else None

    world.silos.by_name["silo-b"].says = says
    with opened(world) as store:
        office = world.office(store)
        context, model = world.context(office)
        for number in (1, 2, 3):
            model = world.round(office, context, number, model).model
        assert len(asked) >= 1
        kinds = [e.kind for e in store.events.list(run_id="r-1")]
        assert "epoch.without" in kinds
        assert all(len(row.cohort) == 3 for row in store.rounds.list("r-1"))


def test_too_few_keys_pause_the_run_and_say_why(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", FOUR, rounds=1, min_cohort=4)
    world.silos.by_name["silo-b"].says = lambda _: Reason.of_refusal(Refusal.RUN_CHANGED)
    with pytest.raises(
        RunPaused, match=r"3 of at least 4 silos offer keys .*silo-b: it refuses, for secure aggregation"
    ):
        world.live()


def test_what_the_server_receives_is_noise(tmp_path: Path) -> None:
    """Each upload, and each sum of a proper subset of them, is uniform: chi-square over bytes, as a smoke test."""
    world = MaskedWorld(tmp_path / "w", {"silo-a": 1, "silo-b": 1, "silo-c": 1}, rounds=40)
    world.live(closing=False)
    uploads: dict[int, dict[str, np.ndarray]] = {}
    for name, asked, noise in world.silos.seen:
        uploads.setdefault(asked.step, {})[name] = np.frombuffer(noise, np.uint32)
    names = ("silo-a", "silo-b", "silo-c")
    for size in (1, 2, 3):  # all three together are noise too, until the silos help
        for subset in itertools.combinations(names, size):
            sums = [np.sum([u[n] for n in subset], axis=0, dtype=np.uint32) for u in uploads.values()]
            counts = np.bincount(np.concatenate(sums).view(np.uint8), minlength=256)
            chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
            assert chi_square < 400, subset  # 255 degrees of freedom: beyond 400 once in 10^8


class Life:
    """What the driver does with one round, over pauses and restarts: everything is made anew each time."""

    def __init__(self, world: MaskedWorld, store: Store) -> None:
        self.world, self.store = world, store
        self.office = world.office(store)

    def tries(self, most: int) -> list[str]:
        """How each attempt at round 1 has ended, until one is ok."""
        said: list[str] = []
        while len(said) < most and "ok" not in said:
            try:
                self._attempt()
                said.append("ok")
            except RoundLost as lost:
                said.append(f"lost: {lost}")
                self._driver()._abandon_open_round(str(lost))
            except RunPaused as paused:
                said.append(f"paused: {paused}")
        return said

    def _driver(self) -> RunDriver:
        driver = object.__new__(RunDriver)
        driver._store, driver.run_id = self.store, "r-1"
        return driver

    def _attempt(self) -> None:
        context, model = self.world.context(self.office)
        assert context.secure is not None
        task = self._driver()._open_task(1, model, context)
        members = self.office.members(sorted(self.world.silos.by_name))
        if task is None:
            epoch, names = context.secure.silos_for(0, members)
            task = RoundTask(1, self.store.secure.next_step("r-1"), model, names, epoch)
        members = self.office.members(task.roster)
        inquiry: Any = self.office.inquiry(TrainReply)
        run_round(context, task, members, inquiry, Everybody(members), lambda *_: None)


THREE = {"silo-a": 3, "silo-b": 1, "silo-c": 2}


def test_fresh_keys_come_also_where_every_silo_is_needed(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", THREE, rounds=1, min_cohort=3)
    with opened(world) as store:
        life = Life(world, store)
        context, _ = world.context(life.office)
        assert context.secure is not None
        context.secure.epoch_for(life.office.members(sorted(THREE)))
        lost = world.silos.by_name["silo-c"]
        lost.state = open_run(None, lost.state.binding, lost.name)
        first, second = life.tries(3)
        assert first.startswith("lost: round 1 has updates of 2 of at least 3 silos")
        assert second == "ok"
        assert [s.epoch for s in store.secure.steps("r-1")] == [1, 2]


def test_a_run_that_was_paused_for_a_failed_silo_asks_it_again(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", THREE, rounds=1, min_cohort=3)
    full = world.silos.by_name["silo-c"]
    full.says = lambda asked: Reason.of(Code.DISK_FULL) if isinstance(asked, TrainRequest) else None
    with opened(world) as store:
        life = Life(world, store)
        [paused] = life.tries(1)
        assert paused.startswith("paused: round 1 has updates of 2 of at least 3 silos")
        full.says = lambda _: None
        assert life.tries(2)[-1] == "ok"


def test_the_figures_of_one_silo_alone_are_not_seen(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", THREE, rounds=1, min_cohort=3)
    for name in ("silo-a", "silo-b"):
        world.silos.by_name[name].figures = lambda _number: Figures()  # type: ignore[method-assign]
    world.live()
    with opened(world) as store:
        assert store.rounds.list("r-1")[0].cohort == list(THREE)
        assert store.rounds.evaluations("r-1") == []


@pytest.mark.parametrize("refuses", [True, False])
def test_a_silo_without_a_key_costs_no_epoch_a_round(tmp_path: Path, refuses: bool) -> None:
    world = MaskedWorld(tmp_path / "w", {**THREE, "silo-d": 1}, rounds=3, min_cohort=3)
    no_key = Reason.of_refusal(Refusal.RUN_CHANGED) if refuses else SAYS_NOTHING
    world.silos.by_name["silo-d"].says = lambda asked: no_key if isinstance(asked, KeysRequest) else None
    with opened(world) as store:
        office = world.office(store)
        context, model = world.context(office)
        assert context.secure is not None
        for number in (1, 2, 3):
            model = world.round(office, context, number, model).model
            if not refuses:  # whoever is silent is away from then on: see `RunDriver._note_without`
                assert context.secure.without.keys() == {"silo-d"}
                break
        assert {s.epoch for s in store.secure.steps("r-1")} == {1}


def test_another_cohort_is_tried_once_a_silo_of_the_first_is_revoked(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", {**THREE, "silo-d": 1}, rounds=1)
    rules = world.silos.rules
    world.silos.rules = lambda: replace(rules(), max_releases_per_model=2)  # type: ignore[method-assign]
    for name in ("silo-b", "silo-c"):
        world.silos.by_name[name].says = silent_once(UnmaskRequest)
    dead = [False]

    def dies(asked: Request) -> str | None:
        dead[0] = dead[0] or isinstance(asked, UnmaskRequest)
        return SAYS_NOTHING if dead[0] else None

    world.silos.by_name["silo-d"].says = dies
    with opened(world) as store:
        life = Life(world, store)
        first, second = life.tries(2)
        assert "help to open the sum" in first
        assert "silo-d must come back" in second
        world.silos.revoked.add("silo-d")
        assert life.tries(2)[-1] == "ok"
        assert store.rounds.list("r-1")[0].cohort == list(THREE)


def test_a_child_is_bound_by_what_was_shown_of_its_first_weights_only(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", THREE, rounds=3)
    world.live()
    with opened(world) as store:
        run = store.runs.get("r-1")
        facts = {"name": "m", "spec": run.spec, "spec_hash": run.spec_hash, "rounds_planned": 3}
        store.runs.create(run_id="r-2", parent_id="r-1", rounds_committed=1, **facts)
        store.rounds.open(run_id="r-2", number=2, step=1, roster=list(THREE))
        context, _ = world.context(world.office(store))
        assert context.secure is not None
        context.secure.binding = context.secure.binding.model_copy(update={"run": "r-2"})
        shown = [context.secure._shown(number) for number in (1, 2, 3)]
        assert [row and (row.run_id, row.round_number) for row in shown] == [("r-1", 2), None, None]


def test_a_silo_with_a_new_key_begins_an_epoch(tmp_path: Path) -> None:
    world = MaskedWorld(tmp_path / "w", FOUR, rounds=2)
    with opened(world) as store:
        office = world.office(store)
        context, model = world.context(office)
        model = world.round(office, context, 1, model).model
        world.silos.by_name["silo-b"].key = new_key()
        world.round(office, context, 2, model)
        assert [s.epoch for s in store.secure.steps("r-1")] == [1, 2]
