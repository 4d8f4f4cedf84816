"""Rounds, commits and evaluations, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import StatementError

from fedplat.errors import ConflictError, NotFoundError
from fedplat_server.store import Evaluation, Round, Split, Store, open_store
from fedplat_server.transitions import RoundState, RunState, SiloRoundState

ROSTER = ["hospital-b", "hospital-a", "hospital-c"]
COHORT = ["hospital-b", "hospital-a"]
RUN = "run-1"


@pytest.fixture
def store(store: Store, enrol, submit) -> Iterator[Store]:
    """A store with three silos and a run."""
    enrol(*ROSTER)
    submit(RUN)
    return store


def open_round(store: Store, number: int = 1, step: int = 1) -> Round:
    return store.rounds.open(run_id=RUN, number=number, step=step, roster=ROSTER)


def upload(store: Store, number: int = 1, *names: str) -> None:
    for name in names or COHORT:
        state = SiloRoundState.UPLOADED
        store.rounds.silo_round(run_id=RUN, number=number, silo_name=name, state=state, bytes_up=4096)


def fix(store: Store, number: int = 1) -> Round:
    return store.rounds.fix_cohort(run_id=RUN, number=number, cohort=COHORT)


def commit(store: Store, number: int = 1, weights: str = "a", **more) -> Round:
    arguments = {
        "cohort": COHORT,
        "weights_path": f"{number}.safetensors",
        "weights_sha256": weights * 64,
        "evaluations": [
            Evaluation(
                round_number=number - 1,
                split=Split.TEST,
                silos=ROSTER,
                num_examples=920,
                loss=0.5,
                metrics={"accuracy": 0.75, "auroc": float("nan"), "scores": [1.0, float("inf")]},
            )
        ],
        "silo_rounds": {"hospital-a": {"seconds_training": 1.5, "samples_per_second": float("inf")}},
        "update_norm": 0.25,
        "seconds": 3.5,
    }
    return store.rounds.commit(run_id=RUN, number=number, **(arguments | more))


def whole_round(store: Store, number: int) -> None:
    open_round(store, number, step=number)
    upload(store, number)
    fix(store, number)
    commit(store, number)


def snapshot(store: Store) -> list[object]:
    rounds, events = store.rounds.list(RUN), store.events.list()
    return [store.runs.get(RUN), rounds, events, store.rounds.silo_rounds(RUN), store.rounds.evaluations(RUN)]


def states(store: Store, number: int = 1) -> dict[str, SiloRoundState]:
    return {part.silo_name: part.state for part in store.rounds.silo_rounds(RUN, number)}


def test_a_commit_writes_everything_that_belongs_to_the_round(store: Store) -> None:
    opened = open_round(store)
    assert (opened.state, opened.cohort, opened.step) == (RoundState.TRAINING, [], 1)
    assert set(states(store).values()) == {SiloRoundState.INVITED}
    upload(store)
    assert fix(store).cohort == COHORT
    done = commit(store)
    assert (done.state, done.cohort, done.weights_sha256) == (RoundState.COMMITTED, COHORT, "a" * 64)
    assert (done.update_norm, done.seconds) == (0.25, 3.5)
    assert done.finished_at is not None
    run = store.runs.get(RUN)
    assert (run.rounds_committed, run.weights_path, run.weights_sha256) == (1, "1.safetensors", "a" * 64)
    assert states(store) == {
        "hospital-a": SiloRoundState.INCLUDED,
        "hospital-b": SiloRoundState.INCLUDED,
        "hospital-c": SiloRoundState.MISSED,
    }
    part = store.rounds.silo_rounds(RUN)[0]
    assert (part.seconds_training, part.bytes_up, part.restarts) == (1.5, 4096, 0)
    last = store.events.list()[-1]
    assert (last.kind, last.run_id) == ("round.committed", RUN)
    assert last.detail == {"round": 1, "cohort": COHORT, "weights_sha256": "a" * 64}


def test_what_is_not_finite_is_null(store: Store) -> None:
    whole_round(store, 1)
    measured = store.rounds.evaluations(RUN)[0]
    assert measured.metrics == {"accuracy": 0.75, "auroc": None, "scores": [1.0, None]}
    assert store.rounds.silo_rounds(RUN)[0].samples_per_second is None
    bad = Evaluation(round_number=0, split=Split.TEST, silos=[], num_examples=0, loss=float("nan"))
    store.rounds.record_evaluation(run_id=RUN, evaluation=bad)
    assert [(found.loss, found.metrics) for found in store.rounds.evaluations(RUN)] == [(None, {})]


def test_a_commit_whose_answer_was_lost_can_be_repeated(store: Store) -> None:
    whole_round(store, 1)
    before = snapshot(store)
    assert commit(store) == before[1][0]
    assert snapshot(store) == before
    with pytest.raises(ConflictError, match="committed with the weights aaaa"):
        commit(store, weights="b")
    store.runs.set_state(run_id=RUN, state=RunState.STOPPED)
    assert commit(store) == before[1][0]


def test_two_that_commit_at_once_commit_once(store: Store, database_url: str) -> None:
    open_round(store)
    upload(store)
    fix(store)
    other = open_store(database_url)
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda number: commit((store, other)[number % 2]), range(6)))
    assert all(one == done[0] for one in done)
    assert [event.kind for event in store.events.list()].count("round.committed") == 1
    other.close()


def test_a_commit_that_fails_anywhere_changes_nothing(store: Store) -> None:
    open_round(store)
    upload(store)
    fix(store)
    before = snapshot(store)
    with pytest.raises(ConflictError, match="silo hospital-z is not invited"):
        commit(store, silo_rounds={"hospital-z": {"seconds_training": 1.0}})
    with pytest.raises(StatementError, match="without a time zone"):
        commit(store, silo_rounds={"hospital-a": {"started_at": datetime(2026, 1, 1)}})
    assert snapshot(store) == before
    commit(store)


def test_a_commit_needs_its_cohort_fixed_first(store: Store) -> None:
    open_round(store)
    with pytest.raises(ConflictError, match="round 1 of run run-1 is training and cannot become committed"):
        commit(store)
    with pytest.raises(ConflictError, match="no update from hospital-b, hospital-a"):
        fix(store)
    with pytest.raises(ConflictError, match="no update from any silo"):
        store.rounds.fix_cohort(run_id=RUN, number=1, cohort=[])
    upload(store, 1, *ROSTER)
    assert fix(store) == fix(store)
    for cohort in (ROSTER, COHORT[::-1], COHORT[:1]):
        with pytest.raises(ConflictError, match="is fixed as hospital-b, hospital-a"):
            store.rounds.fix_cohort(run_id=RUN, number=1, cohort=cohort)
        with pytest.raises(ConflictError, match="is fixed as hospital-b, hospital-a"):
            commit(store, cohort=cohort)
    with pytest.raises(ConflictError, match="update of silo hospital-a is in the aggregate"):
        store.rounds.silo_round(run_id=RUN, number=1, silo_name="hospital-a", state=SiloRoundState.FAILED)
    commit(store)
    assert states(store)["hospital-c"] is SiloRoundState.MISSED


def test_rounds_come_in_order(store: Store) -> None:
    with pytest.raises(ConflictError, match="0 committed rounds, so 2 is not next"):
        open_round(store, 2)
    whole_round(store, 1)
    with pytest.raises(ConflictError, match="1 committed rounds, so 1 is not next"):
        open_round(store, 1, step=2)
    with pytest.raises(ConflictError, match="step 1 of run run-1 is not above 1"):
        open_round(store, 2, step=1)
    whole_round(store, 2)
    assert [(found.number, found.step) for found in store.rounds.list(RUN)] == [(1, 1), (2, 2)]
    store.runs.set_layout(run_id=RUN, layout={}, weights_path="x", weights_sha256="0" * 64)
    with pytest.raises(ConflictError, match="past its first round"):
        store.runs.set_layout(run_id=RUN, layout={}, weights_path="x", weights_sha256="0" * 64)
    store.runs.set_state(run_id=RUN, state=RunState.FAILED)
    with pytest.raises(ConflictError, match="run run-1 is failed: it has no more rounds"):
        open_round(store, 3, step=3)
    with pytest.raises(NotFoundError, match="no round 3"):
        commit(store, 3)


def test_a_restarted_server_goes_on_with_the_same_round(store: Store) -> None:
    open_round(store)
    upload(store)
    before = snapshot(store)
    open_round(store)
    assert snapshot(store) == before
    with pytest.raises(ConflictError, match="is training with step 1, so step 2 cannot begin"):
        open_round(store, step=2)


def test_an_abandoned_round_begins_again_with_a_higher_step(store: Store) -> None:
    open_round(store)
    upload(store)
    fix(store)
    store.rounds.abandon(run_id=RUN, number=1, detail={"reason": "too few"})
    assert store.events.list()[-1].detail == {"round": 1, "step": 1, "reason": "too few"}
    with pytest.raises(ConflictError, match="not above 1"):
        open_round(store, step=1)
    again = store.rounds.open(run_id=RUN, number=1, step=2, roster=ROSTER[:2])
    assert (again.state, again.cohort, again.finished_at) == (RoundState.TRAINING, [], None)
    assert states(store) == {
        "hospital-a": SiloRoundState.INVITED,
        "hospital-b": SiloRoundState.INVITED,
        "hospital-c": SiloRoundState.MISSED,
    }
    upload(store)
    fix(store)
    commit(store)
    with pytest.raises(ConflictError, match="is committed and cannot become abandoned"):
        store.rounds.abandon(run_id=RUN, number=1)


def test_fields_of_a_silos_part_are_set_one_by_one(store: Store) -> None:
    open_round(store)
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    note = {"run_id": RUN, "number": 1, "silo_name": "hospital-a"}
    store.rounds.silo_round(**note, state=SiloRoundState.TRAINING, started_at=at, bytes_down=2**40)
    part = store.rounds.silo_round(
        **note, state=SiloRoundState.FAILED, reason_code="workers_failed", reason={"status": -9}, restarts=2
    )
    assert (part.bytes_down, part.started_at, part.restarts) == (2**40, at, 2)
    assert (part.reason_code, part.reason) == ("workers_failed", {"status": -9})
    with pytest.raises(ConflictError, match="silo hospital-a in round 1 of run run-1 is failed and cannot"):
        store.rounds.silo_round(**note, state=SiloRoundState.UPLOADED)
    upload(store, 1, "hospital-b", "hospital-c")
    store.rounds.fix_cohort(run_id=RUN, number=1, cohort=["hospital-b"])
    commit(store, cohort=["hospital-b"], silo_rounds={})
    assert [state.value for state in states(store).values()] == ["failed", "included", "missed"]


def test_an_evaluation_is_replaced_by_a_better_covered_one(store: Store) -> None:
    for silos, loss in ((COHORT, 0.6), (ROSTER, 0.5)):
        found = Evaluation(round_number=2, split=Split.TRAIN, silos=silos, num_examples=9, loss=loss)
        store.rounds.record_evaluation(run_id=RUN, evaluation=found)
    assert store.rounds.evaluations(RUN) == [found]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["open", "upload", "fix", "abandon", "commit"]), max_size=12))
def test_no_order_of_calls_breaks_a_round(store: Store, submit, calls: list[str]) -> None:
    """Whatever a confused coordinator does: committed rounds stay, steps grow, the count fits the rounds."""
    run_id = submit(f"run-{len(store.runs.list()) + 1}")
    step = 0
    for call in calls:
        before = [found for found in store.rounds.list(run_id) if found.state is RoundState.COMMITTED]
        number = len(before) + 1
        where = {"run_id": run_id, "number": number}
        try:
            if call == "open":
                step += 1
                store.rounds.open(**where, step=step, roster=COHORT)
            elif call == "upload":
                for name in COHORT:
                    store.rounds.silo_round(**where, silo_name=name, state=SiloRoundState.UPLOADED)
            elif call == "fix":
                store.rounds.fix_cohort(**where, cohort=COHORT)
            elif call == "abandon":
                store.rounds.abandon(**where)
            else:
                store.rounds.commit(**where, cohort=COHORT, weights_path="w", weights_sha256=f"{step:064}")
        except (ConflictError, NotFoundError):
            pass
        rounds = store.rounds.list(run_id)
        assert rounds[: len(before)] == before
        committed = [found.number for found in rounds if found.state is RoundState.COMMITTED]
        assert committed == list(range(1, store.runs.get(run_id).rounds_committed + 1))
        assert [found.step for found in rounds] == sorted({found.step for found in rounds})
    store.events.verify()
