"""The states of a run, of a round and of a silo in a round, and which changes are legal. Pure.

    run    recruiting -> running <-> waiting -> finishing -> finished
           every state before the end can pause, fail or be stopped; a paused run goes back to work
    round  training -> aggregating -> committed
           training or aggregating -> abandoned -> training (again, with a new step)
    silo   invited -> training -> uploaded -> included
           every state before `included` can end in missed or failed, and be invited again

To repeat the state that holds is legal: whoever lost the answer to a change asks for it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from fedplat.errors import ConflictError


class RunState(StrEnum):
    """Where a run is in its life."""

    RECRUITING = "recruiting"
    RUNNING = "running"
    WAITING = "waiting"
    FINISHING = "finishing"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class RoundState(StrEnum):
    """Where a round is: its cohort is open while `training` and fixed from `aggregating` on."""

    TRAINING = "training"
    AGGREGATING = "aggregating"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class SiloRoundState(StrEnum):
    """What one silo has done in one round."""

    INVITED = "invited"
    TRAINING = "training"
    UPLOADED = "uploaded"
    INCLUDED = "included"
    MISSED = "missed"
    FAILED = "failed"


State = TypeVar("State", RunState, RoundState, SiloRoundState)

_CUT_SHORT = {RunState.PAUSED, RunState.FAILED, RunState.STOPPED}

RUN_CHANGES: Mapping[RunState, frozenset[RunState]] = {
    RunState.RECRUITING: frozenset({RunState.RUNNING, RunState.WAITING} | _CUT_SHORT),
    RunState.RUNNING: frozenset({RunState.WAITING, RunState.FINISHING} | _CUT_SHORT),
    # Back to recruiting: a change of membership takes fresh keys from every silo.
    RunState.WAITING: frozenset({RunState.RECRUITING, RunState.RUNNING, RunState.FINISHING} | _CUT_SHORT),
    # Back to waiting: the last evaluation needs the silos too.
    RunState.FINISHING: frozenset({RunState.WAITING, RunState.FINISHED} | _CUT_SHORT),
    RunState.PAUSED: frozenset(
        {RunState.RECRUITING, RunState.RUNNING, RunState.FINISHING, RunState.FAILED, RunState.STOPPED}
    ),
    RunState.FINISHED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.STOPPED: frozenset(),
}

ROUND_CHANGES: Mapping[RoundState, frozenset[RoundState]] = {
    RoundState.TRAINING: frozenset({RoundState.AGGREGATING, RoundState.ABANDONED}),
    RoundState.AGGREGATING: frozenset({RoundState.COMMITTED, RoundState.ABANDONED}),
    RoundState.COMMITTED: frozenset(),
    RoundState.ABANDONED: frozenset({RoundState.TRAINING}),
}

_OUT = {SiloRoundState.MISSED, SiloRoundState.FAILED}

SILO_ROUND_CHANGES: Mapping[SiloRoundState, frozenset[SiloRoundState]] = {
    # Straight to uploaded: the update was in the silo's spool already.
    SiloRoundState.INVITED: frozenset({SiloRoundState.TRAINING, SiloRoundState.UPLOADED} | _OUT),
    SiloRoundState.TRAINING: frozenset({SiloRoundState.INVITED, SiloRoundState.UPLOADED} | _OUT),
    SiloRoundState.UPLOADED: frozenset({SiloRoundState.INVITED, SiloRoundState.INCLUDED} | _OUT),
    SiloRoundState.INCLUDED: frozenset(),
    SiloRoundState.MISSED: frozenset({SiloRoundState.INVITED}),
    SiloRoundState.FAILED: frozenset({SiloRoundState.INVITED, SiloRoundState.MISSED}),
}


def check_run(old: RunState, new: RunState, *, what: str = "a run") -> None:
    """Raise ConflictError unless a run may go from `old` to `new`. `what` names it for people."""
    _check(what, RUN_CHANGES, old, new)


def check_round(old: RoundState, new: RoundState, *, what: str = "a round") -> None:
    """Raise ConflictError unless a round may go from `old` to `new`. `what` names it for people."""
    _check(what, ROUND_CHANGES, old, new)


def check_silo_round(old: SiloRoundState, new: SiloRoundState, *, what: str = "a silo in a round") -> None:
    """Raise ConflictError unless a silo in a round may go from `old` to `new`. `what` names it for people."""
    _check(what, SILO_ROUND_CHANGES, old, new)


def is_final(state: RunState) -> bool:
    """Whether a run in this state never changes again."""
    return not RUN_CHANGES[state]


def _check(what: str, changes: Mapping[State, frozenset[State]], old: State, new: State) -> None:
    legal = changes[old]
    if new is old or new in legal:
        return
    words = ", ".join(sorted(legal)) or "nothing: it is over"
    raise ConflictError(f"{what} is {old} and cannot become {new}", hint=f"From {old} it can become {words}.")
