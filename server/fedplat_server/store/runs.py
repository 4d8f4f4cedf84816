"""Runs, and what each silo said to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select, update

from fedplat.errors import ConflictError, NotFoundError
from fedplat.names import check_run_id
from fedplat_server.store.columns import finite, utc_now
from fedplat_server.store.events import append_event
from fedplat_server.store.records import Run, RunSilo
from fedplat_server.store.rows import every, first, one, upsert
from fedplat_server.store.session import Database
from fedplat_server.store.tables import RunSiloState, run_silos, runs
from fedplat_server.transitions import RunState, check_run, is_final

LIST_HINT = "See every run: fedplat run list"
_SAID_BY_THE_SILO = (RunSiloState.ACCEPTED, RunSiloState.REFUSED, RunSiloState.LEFT)


class Runs:
    """The runs of the federation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        *,
        run_id: str,
        name: str,
        spec: Mapping[str, object],
        spec_hash: str,
        rounds_planned: int,
        parent_id: str | None = None,
        rounds_committed: int = 0,
        actor: str = "server",
    ) -> Run:
        """A new run, recruiting. The same id and spec again returns it; another spec is a ConflictError.

        `rounds_committed`: the rounds that a child run has from its parent.
        """
        check_run_id(run_id)
        with self._database.write() as connection:
            run = first(connection, Run, select(runs).where(runs.c.id == run_id))
            if run is not None and run.spec_hash != spec_hash:
                raise ConflictError(
                    f"run {run_id} exists with another spec", hint="Submit the changed spec as a new run."
                )
            if run is not None:
                return run
            connection.execute(
                insert(runs).values(
                    id=run_id,
                    name=name,
                    spec=spec,
                    spec_hash=spec_hash,
                    state=RunState.RECRUITING,
                    parent_id=parent_id,
                    rounds_planned=rounds_planned,
                    rounds_committed=rounds_committed,
                    created_at=utc_now(),
                )
            )
            detail = {"name": name, "spec_hash": spec_hash, "parent_id": parent_id}
            append_event(connection, kind="run.created", actor=actor, run_id=run_id, detail=detail)
            return get_run(connection, run_id)

    def get(self, run_id: str) -> Run:
        """The run of that id; NotFoundError without one."""
        with self._database.read() as connection:
            return get_run(connection, run_id)

    def resolve(self, prefix: str) -> Run:
        """The only run whose id starts with `prefix`; an id in full always means itself."""
        query = select(runs).where(func.substr(runs.c.id, 1, len(prefix)) == prefix).order_by(runs.c.id)
        with self._database.read() as connection:
            found = every(connection, Run, query)
        for run in found:
            if run.id == prefix or len(found) == 1:
                return run
        if not found or not prefix:
            raise NotFoundError(f"there is no run {prefix}", hint=LIST_HINT)
        ids = ", ".join(run.id for run in found[:5])
        raise NotFoundError(f"{prefix} can mean {len(found)} runs: {ids}", hint="Write more of the id.")

    def list(self) -> Sequence[Run]:
        """Every run, oldest first."""
        with self._database.read() as connection:
            return every(connection, Run, select(runs).order_by(runs.c.created_at, runs.c.id))

    def unfinished(self) -> Sequence[Run]:
        """The runs that can still change, oldest first: what a start-up takes up again."""
        return [run for run in self.list() if not is_final(run.state)]

    def set_state(
        self,
        *,
        run_id: str,
        state: RunState,
        reason: str | None = None,
        reason_code: str | None = None,
        actor: str = "server",
    ) -> Run:
        """Change a run's state and its reason; the same again is no change. ConflictError where illegal."""
        with self._database.write() as connection:
            run = get_run(connection, run_id)
            check_run(run.state, state, what=f"run {run_id}")
            if (run.state, run.reason, run.reason_code) == (state, reason, reason_code):
                return run
            if run.state is state and is_final(state):
                return run
            now = utc_now()
            values: dict[str, object] = {"state": state, "reason": reason, "reason_code": reason_code}
            if state is RunState.RUNNING and run.started_at is None:
                values["started_at"] = now
            if is_final(state):
                values["finished_at"] = now
            connection.execute(update(runs).where(runs.c.id == run_id).values(**values))
            detail = {"from": run.state, "to": state, "reason": reason, "reason_code": reason_code}
            append_event(connection, kind="run.state", actor=actor, run_id=run_id, detail=detail)
            return get_run(connection, run_id)

    def set_layout(self, *, run_id: str, layout: Mapping[str, object], weights_path: str, weights_sha256: str) -> Run:
        """Fix the layout and the initial weights, before the first round is committed."""
        with self._database.write() as connection:
            run = get_run(connection, run_id)
            if run.layout is not None and run.rounds_committed:
                raise ConflictError(f"run {run_id} is past its first round, so its initial weights are fixed")
            values = {"layout": layout, "weights_path": weights_path, "weights_sha256": weights_sha256}
            connection.execute(update(runs).where(runs.c.id == run_id).values(**values))
            return get_run(connection, run_id)

    def move_weights(self, *, run_id: str, weights_path: str) -> None:
        """The file with the run's weights lies elsewhere now."""
        with self._database.write() as connection:
            connection.execute(update(runs).where(runs.c.id == run_id).values(weights_path=weights_path))

    def set_flower_run(self, *, run_id: str, flower_run_id: int) -> None:
        """Note under which id Flower's link state knows the run."""
        with self._database.write() as connection:
            get_run(connection, run_id)
            connection.execute(update(runs).where(runs.c.id == run_id).values(flower_run_id=flower_run_id))

    def join(
        self,
        *,
        run_id: str,
        silo_name: str,
        state: RunSiloState,
        reason_code: str | None = None,
        reason: Mapping[str, object] | None = None,
        num_examples: int | None = None,
        info: Mapping[str, object] | None = None,
    ) -> RunSilo:
        """Set a silo's state in a run, with its reason; the same again is no change.

        `num_examples` and `info` stay unless given.
        """
        with self._database.write() as connection:
            get_run(connection, run_id)
            old = first(connection, RunSilo, _one_silo(run_id, silo_name))
            now = utc_now()
            values: dict[str, object] = {"state": state, "reason_code": reason_code, "reason": finite(reason)}
            given = {"num_examples": num_examples, "info": finite(info)}
            values |= {name: value for name, value in given.items() if value is not None}
            if old is not None and all(getattr(old, name) == value for name, value in values.items()):
                return old
            values["updated_at"] = now
            if state is RunSiloState.ACCEPTED and (old is None or old.joined_at is None):
                values["joined_at"] = now
            key = {"run_id": run_id, "silo_name": silo_name}
            upsert(connection, run_silos, key, values, defaults={"info": {}})
            if old is None or (old.state, old.reason_code) != (state, reason_code):
                detail = {"state": state, "reason_code": reason_code, "reason": reason}
                actor = silo_name if state in _SAID_BY_THE_SILO else "server"
                append_event(connection, kind="run.silo", actor=actor, **key, detail=detail)
            return one(connection, RunSilo, _one_silo(run_id, silo_name))

    def silos(self, run_id: str) -> Sequence[RunSilo]:
        """Every silo's part in a run, by name."""
        query = select(run_silos).where(run_silos.c.run_id == run_id).order_by(run_silos.c.silo_name)
        with self._database.read() as connection:
            return every(connection, RunSilo, query)


def get_run(connection: Connection, run_id: str) -> Run:
    """The run of that id, within a transaction; NotFoundError without one."""
    run = first(connection, Run, select(runs).where(runs.c.id == run_id))
    if run is None:
        raise NotFoundError(f"there is no run {run_id}", hint=LIST_HINT)
    return run


def _one_silo(run_id: str, silo_name: str) -> Select[Any]:
    return select(run_silos).where(run_silos.c.run_id == run_id, run_silos.c.silo_name == silo_name)
