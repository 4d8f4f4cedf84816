"""Rounds, each silo's part in them, and evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

from sqlalchemy import Connection, Select, func, select, update

from fedplat.errors import ConflictError, NotFoundError
from fedplat_server.store.columns import utc_now
from fedplat_server.store.events import append_event
from fedplat_server.store.records import Evaluation, Round, Run, SiloRound, SiloRoundFields
from fedplat_server.store.rows import every, first, one, upsert
from fedplat_server.store.runs import get_run
from fedplat_server.store.secure import fix_masked_cohort
from fedplat_server.store.session import Database
from fedplat_server.store.tables import evaluations, rounds, runs, silo_rounds
from fedplat_server.transitions import RoundState, SiloRoundState, check_round, check_silo_round, is_final


class Rounds:
    """The rounds of every run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, *, run_id: str, number: int, step: int, roster: Sequence[str]) -> Round:
        """Begin the run's next round, or an abandoned one again with a higher step; every silo is invited.

        The same round and step again changes nothing: that is how a restarted server goes on.
        """
        with self._database.write() as connection:
            run = _get_open_run(connection, run_id)
            old = first(connection, Round, _round(run_id, number))
            if old is not None and old.step == step and old.state is not RoundState.ABANDONED:
                return old
            _check_next(connection, run, old, number, step)
            values = {"step": step, "state": RoundState.TRAINING, "cohort": [], "finished_at": None}
            key = {"run_id": run_id, "number": number}
            upsert(connection, rounds, key, {**values, "started_at": utc_now()})
            _invite(connection, run_id, number, roster)
            return one(connection, Round, _round(run_id, number))

    def fix_cohort(
        self, *, run_id: str, number: int, cohort: Sequence[str], uploads: Sequence[tuple[str, str]] = ()
    ) -> Round:
        """Write down whose updates are in the aggregate, once and for all for this step; with secure aggregation, the
        masked `uploads` by (name, upload id).

        The same cohort again changes nothing; another one is a ConflictError.
        """
        with self._database.write() as connection:
            old = _get_round(connection, run_id, number)
            if uploads:
                fix_masked_cohort(connection, run_id, old.step, uploads)
            if old.state in (RoundState.AGGREGATING, RoundState.COMMITTED):
                _check_cohort(old, cohort)
                return old
            check_round(old.state, RoundState.AGGREGATING, what=_words(run_id, number))
            _check_uploaded(connection, old, cohort)
            _set_round(connection, old, {"state": RoundState.AGGREGATING, "cohort": list(cohort)})
            note = {"round": number, "step": old.step, "cohort": list(cohort)}
            append_event(connection, kind="round.cohort", actor="server", run_id=run_id, detail=note)
            return one(connection, Round, _round(run_id, number))

    def abandon(self, *, run_id: str, number: int, detail: Mapping[str, object] | None = None) -> Round:
        """Give a round's step up; `open` begins it again. `detail` says why, in the event."""
        with self._database.write() as connection:
            old = _get_round(connection, run_id, number)
            check_round(old.state, RoundState.ABANDONED, what=_words(run_id, number))
            if old.state is not RoundState.ABANDONED:
                _set_round(connection, old, {"state": RoundState.ABANDONED, "finished_at": utc_now()})
                note = {"round": number, "step": old.step, **(detail or {})}
                append_event(connection, kind="round.abandoned", actor="server", run_id=run_id, detail=note)
            return one(connection, Round, _round(run_id, number))

    def silo_round(self, *, run_id: str, number: int, silo_name: str, **fields: Unpack[SiloRoundFields]) -> SiloRound:
        """Note something about a silo's part in a round that it was invited to."""
        with self._database.write() as connection:
            _check_fixed(_get_round(connection, run_id, number), silo_name, fields)
            _note(connection, run_id, number, silo_name, fields)
            return one(connection, SiloRound, _silo_rounds(run_id, number, silo_name))

    def commit(
        self,
        *,
        run_id: str,
        number: int,
        cohort: Sequence[str],
        weights_path: str,
        weights_sha256: str,
        evaluations: Iterable[Evaluation] = (),
        silo_rounds: Mapping[str, SiloRoundFields] | None = None,
        update_norm: float | None = None,
        seconds: float | None = None,
    ) -> Round:
        """Commit a round whose cohort is fixed, in one transaction with all that belongs to it.

        Writes the round, the silos' parts (the cohort is included; who is still open has missed it), the
        evaluations, and the run's count and weights. The same round and weights again changes nothing, for a
        commit whose answer was lost may have happened; other weights are a ConflictError.
        """
        with self._database.write() as connection:
            old = _get_round(connection, run_id, number)
            if old.state is RoundState.COMMITTED:
                _check_same_weights(old, weights_sha256)
                return old
            _get_open_run(connection, run_id)
            check_round(old.state, RoundState.COMMITTED, what=_words(run_id, number))
            _check_cohort(old, cohort)
            _close_silo_rounds(connection, old, silo_rounds or {})
            for evaluation in evaluations:
                _write_evaluation(connection, run_id, evaluation)
            values = {"weights_sha256": weights_sha256, "update_norm": update_norm, "seconds": seconds}
            closed = {"state": RoundState.COMMITTED, "finished_at": utc_now()}
            _set_round(connection, old, closed | values)
            pointer = {"rounds_committed": number, "weights_path": weights_path}
            pointer |= {"weights_sha256": weights_sha256}
            connection.execute(update(runs).where(runs.c.id == run_id).values(**pointer))
            detail = {"round": number, "cohort": list(cohort), "weights_sha256": weights_sha256}
            append_event(connection, kind="round.committed", actor="server", run_id=run_id, detail=detail)
            return one(connection, Round, _round(run_id, number))

    def record_evaluation(self, *, run_id: str, evaluation: Evaluation) -> None:
        """Write an evaluation, over an earlier one of the same weights and split."""
        with self._database.write() as connection:
            get_run(connection, run_id)
            _write_evaluation(connection, run_id, evaluation)

    def list(self, run_id: str) -> Sequence[Round]:
        """The rounds of a run, by number."""
        query = select(rounds).where(rounds.c.run_id == run_id).order_by(rounds.c.number)
        with self._database.read() as connection:
            return every(connection, Round, query)

    def evaluations(self, run_id: str) -> Sequence[Evaluation]:
        """The evaluations of a run, by round."""
        columns = [evaluations.c[name] for name in Evaluation.__dataclass_fields__]
        order = (evaluations.c.round_number, evaluations.c.split)
        query = select(*columns).where(evaluations.c.run_id == run_id).order_by(*order)
        with self._database.read() as connection:
            return every(connection, Evaluation, query)

    def silo_rounds(self, run_id: str, number: int | None = None) -> Sequence[SiloRound]:
        """The silos' parts in a run, or in one round of it; by round, then by name."""
        with self._database.read() as connection:
            return every(connection, SiloRound, _silo_rounds(run_id, number))


def _round(run_id: str, number: int) -> Select[Any]:
    return select(rounds).where(rounds.c.run_id == run_id, rounds.c.number == number)


def _words(run_id: str, number: int, silo_name: str | None = None) -> str:
    place = f"round {number} of run {run_id}"
    return place if silo_name is None else f"silo {silo_name} in {place}"


def _silo_rounds(run_id: str, number: int | None = None, silo_name: str | None = None) -> Select[Any]:
    order = (silo_rounds.c.round_number, silo_rounds.c.silo_name)
    query = select(silo_rounds).where(silo_rounds.c.run_id == run_id).order_by(*order)
    if number is not None:
        query = query.where(silo_rounds.c.round_number == number)
    return query if silo_name is None else query.where(silo_rounds.c.silo_name == silo_name)


def _get_round(connection: Connection, run_id: str, number: int) -> Round:
    found = first(connection, Round, _round(run_id, number))
    if found is None:
        raise NotFoundError(f"run {run_id} has no round {number}", hint=f"fedplat run show {run_id}")
    return found


def _get_open_run(connection: Connection, run_id: str) -> Run:
    run = get_run(connection, run_id)
    if is_final(run.state):
        raise ConflictError(f"run {run_id} is {run.state}: it has no more rounds")
    return run


def _set_round(connection: Connection, old: Round, values: Mapping[str, object]) -> None:
    upsert(connection, rounds, {"run_id": old.run_id, "number": old.number}, values)


def _check_next(connection: Connection, run: Run, old: Round | None, number: int, step: int) -> None:
    if number != run.rounds_committed + 1:
        raise ConflictError(f"run {run.id} has {run.rounds_committed} committed rounds, so {number} is not next")
    if old is not None and old.state is not RoundState.ABANDONED:
        raise ConflictError(
            f"round {number} of run {run.id} is {old.state} with step {old.step}, so step {step} cannot begin",
            hint="Abandon the round first.",
        )
    last = connection.execute(select(func.max(rounds.c.step)).where(rounds.c.run_id == run.id)).scalar()
    if last is not None and step <= last:
        raise ConflictError(f"step {step} of run {run.id} is not above {last}, and a step is never used again")


def _check_cohort(old: Round, cohort: Sequence[str]) -> None:
    if old.cohort != list(cohort):
        raise ConflictError(
            f"the cohort of round {old.number} of run {old.run_id}, step {old.step}, is fixed as "
            f"{', '.join(old.cohort)} and cannot become {', '.join(cohort) or 'empty'}",
            hint="Abandon the round, and open it again with a higher step.",
        )


def _check_uploaded(connection: Connection, old: Round, cohort: Sequence[str]) -> None:
    states = {part.silo_name: part.state for part in every(connection, SiloRound, _silo_rounds(old.run_id, old.number))}
    missing = [name for name in cohort if states.get(name) is not SiloRoundState.UPLOADED]
    if missing or not cohort:
        raise ConflictError(
            f"round {old.number} of run {old.run_id} has no update from {', '.join(missing) or 'any silo'}"
        )


def _check_fixed(place: Round, silo_name: str, fields: SiloRoundFields) -> None:
    fixed = place.state is RoundState.AGGREGATING and silo_name in place.cohort
    if fixed and fields.get("state", SiloRoundState.UPLOADED) is not SiloRoundState.UPLOADED:
        raise ConflictError(
            f"the update of silo {silo_name} is in the aggregate of round {place.number} of run {place.run_id}",
            hint="Abandon the round to do without it.",
        )


def _check_same_weights(old: Round, weights_sha256: str) -> None:
    if old.weights_sha256 != weights_sha256:
        raise ConflictError(
            f"round {old.number} of run {old.run_id} is committed with the weights {old.weights_sha256}",
            hint="A committed round never changes.",
        )


def _invite(connection: Connection, run_id: str, number: int, roster: Sequence[str]) -> None:
    parts = every(connection, SiloRound, _silo_rounds(run_id, number))
    states = {part.silo_name: part.state for part in parts}
    blank = {"reason_code": None, "reason": None, "started_at": None, "finished_at": None}
    for name in roster:
        check_silo_round(
            states.get(name, SiloRoundState.INVITED),
            SiloRoundState.INVITED,
            what=_words(run_id, number, name),
        )
        key = {"run_id": run_id, "round_number": number, "silo_name": name}
        upsert(connection, silo_rounds, key, {**blank, "state": SiloRoundState.INVITED}, defaults={"restarts": 0})
    for name, state in states.items():
        if name not in roster and state is not SiloRoundState.FAILED:
            _note(connection, run_id, number, name, {"state": SiloRoundState.MISSED})


def _note(connection: Connection, run_id: str, number: int, silo_name: str, fields: SiloRoundFields) -> None:
    old = first(connection, SiloRound, _silo_rounds(run_id, number, silo_name))
    if old is None:
        raise ConflictError(f"silo {silo_name} is not invited to round {number} of run {run_id}")
    if "state" in fields:
        check_silo_round(old.state, fields["state"], what=_words(run_id, number, silo_name))
    key = {"run_id": run_id, "round_number": number, "silo_name": silo_name}
    if fields:
        upsert(connection, silo_rounds, key, {**fields})


def _close_silo_rounds(connection: Connection, old: Round, given: Mapping[str, SiloRoundFields]) -> None:
    parts = every(connection, SiloRound, _silo_rounds(old.run_id, old.number))
    states = {part.silo_name: part.state for part in parts}
    for name in sorted({*states, *given}):
        fields: SiloRoundFields = {**given.get(name, {})}
        if name in old.cohort:
            fields["state"] = SiloRoundState.INCLUDED
        elif states.get(name) is not SiloRoundState.FAILED:
            fields.setdefault("state", SiloRoundState.MISSED)
        _note(connection, old.run_id, old.number, name, fields)


def _write_evaluation(connection: Connection, run_id: str, evaluation: Evaluation) -> None:
    key = {"run_id": run_id, "round_number": evaluation.round_number, "split": evaluation.split}
    values = {"silos": evaluation.silos, "num_silos": len(evaluation.silos), "loss": evaluation.loss}
    values |= {"num_examples": evaluation.num_examples, "metrics": evaluation.metrics}
    upsert(connection, evaluations, key, values)
