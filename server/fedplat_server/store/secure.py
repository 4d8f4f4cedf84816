"""Epochs and masked steps of secure aggregation: what the server has shown to silos, and may not take back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Unpack

from sqlalchemy import Connection, Select, func, insert, select, update

from fedplat.errors import ConflictError
from fedplat_server.store.columns import utc_now
from fedplat_server.store.events import append_event
from fedplat_server.store.records import SecureEpoch, SecureStep, SecureStepFields
from fedplat_server.store.rows import every, first, one
from fedplat_server.store.session import Database
from fedplat_server.store.tables import rounds, secure_epochs, secure_steps


class Secure:
    """The epochs and masked steps of every run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def epoch(self, run_id: str) -> SecureEpoch | None:
        """The run's newest epoch."""
        with self._database.read() as connection:
            return first(connection, SecureEpoch, _epochs(run_id))

    def open_epoch(
        self, *, run_id: str, epoch: int, first_step: int, roster: Mapping[str, object], max_weight: float
    ) -> SecureEpoch:
        """Write a new epoch down, before any silo sees it."""
        with self._database.write() as connection:
            values = {"first_step": first_step, "roster": roster, "max_weight": max_weight, "created_at": utc_now()}
            connection.execute(insert(secure_epochs).values(run_id=run_id, epoch=epoch, **values))
            detail = {"epoch": epoch, "first_step": first_step}
            append_event(connection, kind="epoch.opened", actor="server", run_id=run_id, detail=detail)
            return one(connection, SecureEpoch, _epochs(run_id).where(secure_epochs.c.epoch == epoch))

    def open_step(
        self,
        *,
        run_id: str,
        step: int,
        epoch: int,
        round_number: int,
        closing: bool,
        silos: Sequence[str],
        threshold: int,
        min_cohort: int,
        colluders_tolerated: int,
    ) -> SecureStep:
        """Begin a step; the same again changes nothing, on other terms it is a ConflictError."""
        values: dict[str, object] = {
            "epoch": epoch,
            "round_number": round_number,
            "closing": closing,
            "silos": list(silos),
            "threshold": threshold,
            "min_cohort": min_cohort,
            "colluders_tolerated": colluders_tolerated,
        }
        with self._database.write() as connection:
            old = first(connection, SecureStep, _steps(run_id, step))
            if old is None:
                row = {"run_id": run_id, "step": step, "opened_at": utc_now(), **values}
                connection.execute(insert(secure_steps).values(**row))
                return one(connection, SecureStep, _steps(run_id, step))
            if any(getattr(old, name) != value for name, value in values.items()):
                raise ConflictError(f"step {step} of run {run_id} was begun with other silos or rules")
            return old

    def fix_cohort(self, *, run_id: str, step: int, cohort: Sequence[tuple[str, str]]) -> None:
        """Write down whose uploads are in the sum, by (name, upload id): once for ever, before any silo is shown it."""
        with self._database.write() as connection:
            fix_masked_cohort(connection, run_id, step, cohort)

    def note(self, *, run_id: str, step: int, **fields: Unpack[SecureStepFields]) -> None:
        """Note how the step went."""
        with self._database.write() as connection:
            _set(connection, run_id, step, {**fields})

    def step(self, run_id: str, step: int) -> SecureStep | None:
        """A step, if it was begun."""
        with self._database.read() as connection:
            return first(connection, SecureStep, _steps(run_id, step))

    def steps(self, run_id: str, round_numbers: Collection[int] = ()) -> Sequence[SecureStep]:
        """The steps of a run, in order; of all its rounds, or of some."""
        query = _steps(run_id)
        if round_numbers:
            query = query.where(secure_steps.c.round_number.in_(round_numbers))
        with self._database.read() as connection:
            return every(connection, SecureStep, query)

    def next_step(self, run_id: str) -> int:
        """A step that no silo has seen."""
        with self._database.read() as connection:
            columns = (rounds.c.step, rounds.c.run_id), (secure_steps.c.step, secure_steps.c.run_id)
            found = [connection.execute(select(func.max(s)).where(r == run_id)).scalar() for s, r in columns]
            return max((step for step in found if step is not None), default=0) + 1


def fix_masked_cohort(connection: Connection, run_id: str, step: int, cohort: Sequence[tuple[str, str]]) -> None:
    """The same within a transaction."""
    fixed = [list(member) for member in cohort]
    old = one(connection, SecureStep, _steps(run_id, step))
    if old.cohort not in (None, fixed):
        raise ConflictError(f"the cohort of step {step} of run {run_id} is fixed already")
    names = [name for name, _ in cohort]
    dropped = [silo for silo in old.silos if silo not in names]
    _set(connection, run_id, step, {"cohort": fixed, "dropped": dropped})


def _epochs(run_id: str) -> Select[Any]:
    return select(secure_epochs).where(secure_epochs.c.run_id == run_id).order_by(secure_epochs.c.epoch.desc()).limit(1)


def _steps(run_id: str, step: int | None = None) -> Select[Any]:
    query = select(secure_steps).where(secure_steps.c.run_id == run_id).order_by(secure_steps.c.step)
    return query if step is None else query.where(secure_steps.c.step == step)


def _set(connection: Connection, run_id: str, step: int, values: Mapping[str, object]) -> None:
    here = (secure_steps.c.run_id == run_id, secure_steps.c.step == step)
    connection.execute(update(secure_steps).where(*here).values(**values))
