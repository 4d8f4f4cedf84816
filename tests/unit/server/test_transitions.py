"""The legal state changes of runs, rounds and silos in rounds."""

from __future__ import annotations

from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedplat.errors import ConflictError
from fedplat_server.transitions import (
    ROUND_CHANGES,
    RUN_CHANGES,
    SILO_ROUND_CHANGES,
    RoundState,
    RunState,
    SiloRoundState,
    check_round,
    check_run,
    check_silo_round,
    is_final,
)

KINDS = [
    (RunState, RUN_CHANGES, check_run),
    (RoundState, ROUND_CHANGES, check_round),
    (SiloRoundState, SILO_ROUND_CHANGES, check_silo_round),
]


@given(st.sampled_from(KINDS), st.data())
def test_exactly_the_listed_changes_and_repetition_are_legal(kind, data: st.DataObject) -> None:
    states, changes, check = kind
    old, new = data.draw(st.sampled_from(list(states))), data.draw(st.sampled_from(list(states)))
    if new is old or new in changes[old]:
        check(old, new)
    else:
        with pytest.raises(ConflictError, match=f"is {old} and cannot become {new}"):
            check(old, new)


@pytest.mark.parametrize(("states", "changes", "check"), KINDS)
def test_every_state_has_its_rules_and_can_be_reached(states: type[StrEnum], changes, check) -> None:
    assert set(changes) == set(states)
    first = next(iter(states))
    reached, todo = set(), [first]
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo.extend(changes[state])
    assert reached == set(states)


def test_a_run_ends_in_three_ways_and_then_stays() -> None:
    assert {state for state in RunState if is_final(state)} == {
        RunState.FINISHED,
        RunState.FAILED,
        RunState.STOPPED,
    }


@given(st.lists(st.sampled_from(list(RunState)), max_size=30))
def test_no_sequence_of_accepted_changes_leaves_a_final_state(wishes: list[RunState]) -> None:
    state, ended = RunState.RECRUITING, None
    for wish in wishes:
        try:
            check_run(state, wish)
        except ConflictError:
            continue
        state = wish
        ended = ended or (state if is_final(state) else None)
        assert ended in (None, state)


def test_the_refusal_says_what_is_possible() -> None:
    with pytest.raises(ConflictError, match="run r-1 is finished and cannot become running") as error:
        check_run(RunState.FINISHED, RunState.RUNNING, what="run r-1")
    assert "it is over" in error.value.hint
    with pytest.raises(ConflictError) as error:
        check_round(RoundState.TRAINING, RoundState.COMMITTED)
    assert "abandoned, aggregating" in error.value.hint
