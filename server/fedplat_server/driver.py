"""The life of one run, from its first question to its last figure."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_safetensors

from fedplat.errors import FedplatError, LayoutError
from fedplat.home import ServerHome
from fedplat.params import Layout, Vector
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec
from fedplat.wire.messages import (
    EvaluateReply,
    JoinReply,
    JoinRequest,
    TrainReply,
    WeightsReply,
    WeightsRequest,
    WireParameter,
    layout_from_wire,
    layout_to_wire,
)
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.exchange import Answer, Inquiry, RunStopped
from fedplat_server.recruiting import Agreement, Recruiting, RunFailed, agree, first_weights
from fedplat_server.registry import Member, Registry
from fedplat_server.rounds import RunContext, closing_evaluation, run_round, told
from fedplat_server.store import Run, RunSiloState, Store
from fedplat_server.strategies import make_strategy
from fedplat_server.superlink import Link
from fedplat_server.transitions import RoundState, RunState

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLive:
    """What a run is doing right now. Times are of a monotonic clock, in seconds."""

    activity: str = "starting"
    round: int = 0
    waiting_for: tuple[str, ...] = ()
    have: int = 0
    minimum: int = 1
    since_s: float = 0.0
    goes_on_after_s: float = 0.0
    gives_up_after_s: float = 0.0


class RunDriver:
    """Drives one run in the caller's thread. `live` may be read from any thread."""

    def __init__(
        self, run_id: str, spec: RunSpec, home: ServerHome, store: Store, link: Link, registry: Registry
    ) -> None:
        self.run_id = run_id
        self.live = RunLive()
        self._spec = spec
        self._home = home
        self._store = store
        self._link = link
        self._registry = registry
        self._stop = threading.Event()
        self._stopped_by_user = False
        self._flower_run = 0
        self._away: set[str] = set()
        self._taking_part: tuple[str, ...] | None = None

    def wants(self, silo: str) -> bool:
        """Whether a silo should keep what it has of this run: until it is known who takes part, everybody should."""
        return self._taking_part is None or silo in self._taking_part

    def stop(self, *, by_user: bool) -> None:
        """Ask the run to end. By a user: for good. Else it is left as it is, for the next start."""
        self._stopped_by_user = by_user
        self._stop.set()

    def drive(self) -> None:
        """To the end: finished, failed or stopped. The boundary at which a run's errors become its reason."""
        try:
            self._flower_run = self._link.open_run()
            self._store.runs.set_flower_run(run_id=self.run_id, flower_run_id=self._flower_run)
            self._drive()
        except RunStopped:
            if self._stopped_by_user:
                self._end(RunState.STOPPED, "stopped by its owner", "stopped")
        except FedplatError as error:
            self._end(RunState.FAILED, error.message, "failed")
        except Exception:  # noqa: BLE001 (the boundary of a run: whatever it was, the run ends and says so)
            _log.exception("run %s", self.run_id)
            self._end(RunState.FAILED, "an error that nobody foresaw; the server's log has it", "internal")
        finally:
            if self._flower_run:
                self._link.close_run(self._flower_run)

    def _end(self, state: RunState, reason: str, code: str) -> None:
        try:
            self._store.runs.set_state(run_id=self.run_id, state=state, reason=reason, reason_code=code)
        except FedplatError as error:
            _log.error("run %s should be %s (%s), but: %s", self.run_id, state, reason, error)

    def _drive(self) -> None:
        run = self._store.runs.get(self.run_id)
        if run.layout is None:
            context, weights, members = self._begin()
        else:
            context, weights, members = self._resume(run)
        self._taking_part = members
        for member in self._registry.members():
            self._link.on_message(member.node_id)  # whoever is not in it hears that now
        self._set_state(RunState.RUNNING)
        step = self._last_step()
        for number in range(run.rounds_committed + 1, self._spec.rounds.count + 1):
            step += 1
            weights = self._round(context, number, step, weights, members)
        self._close(context, weights, members)
        self._set_state(RunState.FINISHED)

    def _set_state(self, state: RunState, reason: str | None = None) -> None:
        self._store.runs.set_state(run_id=self.run_id, state=state, reason=reason)

    # -- beginning --------------------------------------------------------------------------------------------------

    def _begin(self) -> tuple[RunContext, Vector, tuple[str, ...]]:
        minimum, agreement = self._recruit()
        weights = self._initial_weights(agreement)
        context = self._context(agreement.layout, minimum)
        saved = context.checkpoints.save(0, weights, agreement.layout, context.strategy.state())
        self._store.runs.set_layout(
            run_id=self.run_id,
            layout={
                "parameters": [p.model_dump(mode="json") for p in layout_to_wire(agreement.layout)],
                "fingerprint": agreement.layout.fingerprint,
                "minimum": minimum,
            },
            weights_path=str(saved.path),
            weights_sha256=saved.sha256,
        )
        return context, weights, agreement.members

    def _recruit(self) -> tuple[int, Agreement]:
        names = self._spec.silos.names or [m.name for m in self._registry.members()]
        request = JoinRequest(
            run=self.run_id, spec_hash=self._spec.hash, spec=self._spec.canonical(), num_silos=len(names)
        )
        since = time.monotonic()

        def waiting(missing: Sequence[str], minimum: int) -> None:
            self._watch("recruiting", 0, missing, len(names) - len(missing), minimum, since)

        recruiting = Recruiting(self._spec, request, self._registry, self._report_join, waiting)
        with self._inquiry(JoinReply) as inquiry:
            answers = recruiting.gather(inquiry)
        agreement = agree(self._spec, answers.accepted, self._init_fingerprint(answers.accepted))
        for silo, reason in agreement.excluded.items():
            self._refuse(silo, reason)
        minimum = answers.minimum(self._spec)
        if len(agreement.members) < minimum:
            said = "; ".join(f"{silo}: {reason}" for silo, reason in agreement.excluded.items())
            raise RunFailed(f"{len(agreement.members)} of at least {minimum} silos fit together ({said})")
        return minimum, agreement

    def _report_join(self, silo: str, reply: JoinReply, refused: Reason | None) -> None:
        if refused is not None:
            self._refuse(silo, refused)
            return
        info = {
            "capabilities": reply.capabilities.model_dump(mode="json") if reply.capabilities else None,
            "task_version": reply.task_version,
            "warnings": [{"code": w.code, "text": str(w), "hint": w.hint} for w in reply.warnings],
        }
        self._store.runs.join(
            run_id=self.run_id,
            silo_name=silo,
            state=RunSiloState.ACCEPTED,
            num_examples=reply.num_examples,
            info=info,
        )

    def _refuse(self, silo: str, reason: Reason) -> None:
        self._store.runs.join(
            run_id=self.run_id,
            silo_name=silo,
            state=RunSiloState.REFUSED,
            reason_code=reason.code,
            reason=told(reason),
        )

    # -- weights ----------------------------------------------------------------------------------------------------

    @property
    def _init_path(self) -> Path:
        return self._home.run(self.run_id) / "init.safetensors"

    def _init_fingerprint(self, accepted: dict[str, JoinReply]) -> str | None:
        """The layout that the init file fits, if there is one: that of the first silo whose parameters it has."""
        if not self._init_path.exists():
            return None
        arrays = load_safetensors(self._init_path.read_bytes())
        for silo in sorted(accepted):
            layout = layout_from_wire(accepted[silo].layout)
            try:
                layout.join(arrays)
            except LayoutError:
                continue
            return layout.fingerprint
        raise RunFailed("the initial weights fit the model of no silo; compare names and shapes of the parameters")

    def _initial_weights(self, agreement: Agreement) -> Vector:
        size = agreement.layout.size
        if self._init_path.exists():
            weights = agreement.layout.join(load_safetensors(self._init_path.read_bytes()))
        else:
            question = WeightsRequest(run=self.run_id, spec_hash=self._spec.hash)
            with self._inquiry(WeightsReply) as inquiry:
                members = self._members(agreement.members)
                weights = first_weights(inquiry, question, members, size, self._spec.rounds.timeout_s)
        if not np.isfinite(weights).all():
            raise RunFailed("the initial weights hold values that are not finite")
        return weights

    def _context(self, layout: Layout, minimum: int) -> RunContext:
        checkpoints = Checkpoints(self._home.checkpoints(self.run_id), self._spec.hash)
        strategy = make_strategy(self._spec, layout)
        return RunContext(self.run_id, self._spec, layout, minimum, self._store, strategy, checkpoints)

    def _resume(self, run: Run) -> tuple[RunContext, Vector, tuple[str, ...]]:
        """Where the last process left it: the committed weights, and the round that was open once more."""
        kept = json.loads(json.dumps(run.layout))
        layout = layout_from_wire(tuple(WireParameter.model_validate(p) for p in kept["parameters"]))
        context = self._context(layout, int(kept["minimum"]))
        checkpoint = context.checkpoints.load(run.rounds_committed)
        context.strategy.restore(checkpoint.strategy_state)
        for row in self._store.rounds.list(self.run_id):
            if row.state in (RoundState.TRAINING, RoundState.AGGREGATING):
                self._store.rounds.abandon(run_id=self.run_id, number=row.number, detail={"why": "server restarted"})
        took_part = (RunSiloState.ACCEPTED, RunSiloState.AWAY)
        members = tuple(s.silo_name for s in self._store.runs.silos(self.run_id) if s.state in took_part)
        return context, checkpoint.weights, members

    def _last_step(self) -> int:
        return max((row.step for row in self._store.rounds.list(self.run_id)), default=0)

    # -- rounds -----------------------------------------------------------------------------------------------------

    def _round(self, context: RunContext, number: int, step: int, weights: Vector, names: tuple[str, ...]) -> Vector:
        members = self._enough_members(context, number, names)
        since = time.monotonic()

        def waiting(missing: Sequence[str], have: int) -> None:
            self._watch("training", number, missing, have, context.minimum, since)

        waiting([m.name for m in members], 0)
        with self._inquiry(TrainReply) as inquiry:
            result = run_round(context, number, step, weights, members, inquiry, waiting)
        for silo in result.missed:
            if not self._registry.is_here(silo):
                self._mark(silo, away=True)
        return result.weights

    def _enough_members(self, context: RunContext, number: int, names: tuple[str, ...]) -> list[Member]:
        """The silos of the next round: all of the run but those that are away. Waits for the minimum."""
        since = time.monotonic()
        while True:
            for silo in [s for s in self._away if self._registry.is_here(s)]:
                self._mark(silo, away=False)
            members = self._members([n for n in names if n not in self._away])
            if len(members) >= context.minimum:
                self._set_state(RunState.RUNNING)
                return members
            missing = [n for n in names if n in self._away]
            if not missing or time.monotonic() - since > self._spec.silos.wait_s:
                raise RunFailed(
                    f"{len(members)} of at least {context.minimum} silos are left; away: {', '.join(missing) or 'none'}"
                )
            self._set_state(RunState.WAITING, f"waiting for {', '.join(missing)}")
            self._watch("waiting", number, missing, len(members), context.minimum, since)
            with self._inquiry(TrainReply) as inquiry:
                inquiry.pause(1.0)

    def _members(self, names: Sequence[str]) -> list[Member]:
        return [m for m in map(self._registry.member, names) if m is not None]

    def _mark(self, silo: str, *, away: bool) -> None:
        (self._away.add if away else self._away.discard)(silo)
        reason = Reason.of(Code.NO_ANSWER)
        self._store.runs.join(
            run_id=self.run_id,
            silo_name=silo,
            state=RunSiloState.AWAY if away else RunSiloState.ACCEPTED,
            reason_code=reason.code if away else None,
            reason=told(reason) if away else None,
        )

    def _close(self, context: RunContext, weights: Vector, names: tuple[str, ...]) -> None:
        """The last weights are measured too."""
        self._set_state(RunState.FINISHING)
        members = [m for m in self._members(names) if self._registry.is_here(m.name)]
        number = self._spec.rounds.count
        self._watch("closing evaluation", number, [m.name for m in members], 0, 0, time.monotonic())
        with self._inquiry(EvaluateReply) as inquiry:
            closing_evaluation(context, number, weights, members, inquiry)

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _inquiry(self, answer: type[Answer]) -> Inquiry[Answer]:
        return Inquiry(self._link, self._flower_run, answer, self._stop)

    def _watch(self, activity: str, number: int, missing: Sequence[str], have: int, minimum: int, since: float) -> None:
        timeout_s = self._spec.silos.join_timeout_s if activity == "recruiting" else self._spec.rounds.timeout_s
        self.live = replace(
            self.live,
            activity=activity,
            round=number,
            waiting_for=tuple(missing),
            have=have,
            minimum=minimum,
            since_s=since,
            goes_on_after_s=timeout_s,
            gives_up_after_s=max(timeout_s, self._spec.silos.wait_s),
        )
