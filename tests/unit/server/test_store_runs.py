"""Runs and the silos in them, on both databases."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedplat.errors import ConflictError, NotFoundError, WireError
from fedplat_server.store import RunSiloState, Store
from fedplat_server.transitions import RUN_CHANGES, RunState


def test_a_run_reads_back_as_submitted(store: Store) -> None:
    spec = {"z": [1, 2.5, None, True], "a": {"é": "ü"}}
    run = store.runs.create(
        run_id="heart-7f3a", name="heart", spec=spec, spec_hash="5" * 64, rounds_planned=8, actor="ann"
    )
    assert run.spec == spec
    assert (run.state, run.rounds_planned, run.rounds_committed) == (RunState.RECRUITING, 8, 0)
    assert run.created_at.tzinfo is not None
    assert store.runs.get("heart-7f3a") == run
    assert [(event.kind, event.actor, event.run_id) for event in store.events.list()] == [
        ("run.created", "ann", "heart-7f3a")
    ]


def test_the_same_run_again_is_the_same_and_another_spec_is_refused(store: Store, submit) -> None:
    submit()
    again = {"run_id": "run-1", "name": "heart", "spec": {"rounds": 3}, "rounds_planned": 3}
    assert store.runs.create(**again, spec_hash="5" * 64) == store.runs.get("run-1")
    with pytest.raises(ConflictError, match="exists with another spec"):
        store.runs.create(**again, spec_hash="6" * 64)
    with pytest.raises(WireError):
        store.runs.create(**{**again, "run_id": "../etc"}, spec_hash="5" * 64)
    assert len(store.events.list()) == 1


def test_ids_can_be_shortened(store: Store, submit) -> None:
    for run_id in ("heart-1", "heart-12", "lung-1"):
        submit(run_id)
    assert store.runs.resolve("lu").id == "lung-1"
    assert store.runs.resolve("heart-1").id == "heart-1"
    with pytest.raises(NotFoundError, match="heart can mean 2 runs: heart-1, heart-12"):
        store.runs.resolve("heart")
    for unknown in ("liver", "LUNG", "%", ""):
        with pytest.raises(NotFoundError) as error:
            store.runs.resolve(unknown)
        assert error.value.hint
    with pytest.raises(NotFoundError, match="no run liver"):
        store.runs.get("liver")


def test_a_run_goes_through_its_life(store: Store, submit) -> None:
    run_id = submit()
    steps = [
        (RunState.RUNNING, None),
        (RunState.WAITING, "waiting for hospital-a"),
        (RunState.WAITING, "waiting for hospital-a and hospital-b"),
        (RunState.WAITING, "waiting for hospital-a and hospital-b"),
        (RunState.RUNNING, None),
        (RunState.FINISHING, None),
        (RunState.FINISHED, "all rounds done"),
    ]
    for state, reason in steps:
        run = store.runs.set_state(run_id=run_id, state=state, reason=reason, reason_code=reason and "code")
        assert (run.state, run.reason) == (state, reason)
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.created_at <= run.started_at <= run.finished_at
    assert store.runs.set_state(run_id=run_id, state=RunState.FINISHED, reason="again") == run
    changes = [event.detail for event in store.events.list() if event.kind == "run.state"]
    assert [(change["from"], change["to"]) for change in changes] == [
        ("recruiting", "running"),
        ("running", "waiting"),
        ("waiting", "waiting"),
        ("waiting", "running"),
        ("running", "finishing"),
        ("finishing", "finished"),
    ]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wishes=st.lists(st.sampled_from(list(RunState)), max_size=8))
def test_no_illegal_change_reaches_the_database(store: Store, submit, wishes: list[RunState]) -> None:
    run_id = submit(f"run-{len(store.runs.list())}")
    state = RunState.RECRUITING
    for wish in wishes:
        if wish is state or wish in RUN_CHANGES[state]:
            state = store.runs.set_state(run_id=run_id, state=wish).state
        else:
            with pytest.raises(ConflictError, match=f"run {run_id} is {state} and cannot become {wish}"):
                store.runs.set_state(run_id=run_id, state=wish)
        assert store.runs.get(run_id).state is state


def test_a_start_up_takes_up_what_is_unfinished(store: Store, submit) -> None:
    for run_id in ("one", "two", "three"):
        submit(run_id)
    store.runs.set_state(run_id="two", state=RunState.STOPPED)
    store.runs.set_state(run_id="three", state=RunState.PAUSED)
    assert [run.id for run in store.runs.list()] == ["one", "two", "three"]
    assert [run.id for run in store.runs.unfinished()] == ["one", "three"]


def test_initial_weights_are_fixed_before_the_first_round(store: Store, submit) -> None:
    submit()
    run = store.runs.set_layout(
        run_id="run-1", layout={"names": ["w"]}, weights_path="0.safetensors", weights_sha256="0" * 64
    )
    assert (run.layout, run.weights_path, run.weights_sha256) == ({"names": ["w"]}, "0.safetensors", "0" * 64)


def test_flowers_ids_use_all_64_bits(store: Store, submit) -> None:
    submit()
    store.runs.set_flower_run(run_id="run-1", flower_run_id=2**64 - 1)
    assert store.runs.get("run-1").flower_run_id == 2**64 - 1


def test_silos_answer_an_invitation(store: Store, submit, enrol) -> None:
    enrol("hospital-a", "hospital-b")
    submit()
    for name in ("hospital-a", "hospital-b"):
        store.runs.join(run_id="run-1", silo_name=name, state=RunSiloState.INVITED)
    joined = store.runs.join(
        run_id="run-1",
        silo_name="hospital-a",
        state=RunSiloState.ACCEPTED,
        num_examples=303,
        info={"task": "tabular 1"},
    )
    assert joined.joined_at is not None
    away = store.runs.join(
        run_id="run-1", silo_name="hospital-a", state=RunSiloState.AWAY, reason_code="no_answer", reason={"s": 5}
    )
    assert (away.num_examples, away.info, away.joined_at) == (303, {"task": "tabular 1"}, joined.joined_at)
    back = store.runs.join(run_id="run-1", silo_name="hospital-a", state=RunSiloState.ACCEPTED)
    assert (back.reason_code, back.reason, back.joined_at) == (None, None, joined.joined_at)
    assert [(part.silo_name, part.state) for part in store.runs.silos("run-1")] == [
        ("hospital-a", RunSiloState.ACCEPTED),
        ("hospital-b", RunSiloState.INVITED),
    ]
    said = [event for event in store.events.list(run_id="run-1") if event.silo_name == "hospital-a"]
    assert [(event.kind, event.actor, event.detail["state"]) for event in said] == [
        ("run.silo", "server", "invited"),
        ("run.silo", "hospital-a", "accepted"),
        ("run.silo", "server", "away"),
        ("run.silo", "hospital-a", "accepted"),
    ]
    with pytest.raises(ConflictError, match="refused a row"):
        store.runs.join(run_id="run-1", silo_name="hospital-z", state=RunSiloState.INVITED)
