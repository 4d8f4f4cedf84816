"""The life of one run, from its first question to its last figure.

Crash-only: whatever interrupts it (a killed server, a database that is away), the life is entered again from what is on
disk and in SQL, by the same code.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fedplat.errors import FedplatError, StoreUnavailableError
from fedplat.home import ServerHome
from fedplat.reasons import LATER, Code
from fedplat.spec import RunSpec
from fedplat.wire.messages import EvaluateReply, TrainReply
from fedplat_server.beginning import CheckpointLost, Office, Start, begin, resume
from fedplat_server.checkpoints import Checkpoint, CheckpointError
from fedplat_server.closing import closing_evaluation, masked_evaluation
from fedplat_server.context import RoundLost, RoundTask, RunContext
from fedplat_server.exchange import RunStopped
from fedplat_server.membership import Membership
from fedplat_server.recruiting import RunPaused
from fedplat_server.registry import Registry
from fedplat_server.road import Road
from fedplat_server.rounds import run_round
from fedplat_server.secure import SecureRun
from fedplat_server.stopping import StopReason, find_reason, is_better
from fedplat_server.store import Split, Store
from fedplat_server.superlink import Link
from fedplat_server.transitions import RoundState, RunState, SiloRoundState
from fedplat_server.turns import Turns

_log = logging.getLogger(__name__)
DATABASE_PATIENCE_S = 600.0
LAST_WORD_PATIENCE_S = 20.0
MAX_LOST = 3
MAX_OUTAGES = 10


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
    """Drives one run in the caller's thread. `live` and `wants` may be asked from any thread.

    `continue_as_child(run, round)`: begin a child run from a checkpoint of this one.
    """

    def __init__(
        self,
        run_id: str,
        spec: RunSpec,
        home: ServerHome,
        store: Store,
        link: Link,
        road: Road,
        registry: Registry,
        turns: Turns,
        continue_as_child: Callable[[str, int], str],
        ca_fingerprint: str = "",
    ) -> None:
        self.run_id = run_id
        self.live = RunLive()
        self._spec = spec
        self._home = home
        self._store = store
        self._link = link
        self._road = road
        self._registry = registry
        self._turns = turns
        self._continue_as_child = continue_as_child
        self._ca_fingerprint = ca_fingerprint
        self._stop = threading.Event()
        self.asked_to: RunState | None = None
        self._membership: Membership | None = None
        self._let_go: set[str] = set()

    def wants(self, silo: str) -> bool:
        """Whether a silo should keep what it has of this run: until it is known who takes part, everybody should that
        was not let go."""
        return silo not in self._let_go if self._membership is None else self._membership.wants(silo)

    def stop(self, become: RunState | None) -> None:
        """Ask the run to end, stopped or paused; None leaves it as it is, for the next start of the server."""
        self.asked_to = become
        self._stop.set()

    def drive(self) -> None:
        """Until the run is finished, failed, stopped or paused. The boundary at which errors become its reason."""
        flower_run = self._link.open_run()
        try:
            self._until_done(flower_run)
        except RunStopped:
            if self.asked_to is not None:
                words = "stopped" if self.asked_to is RunState.STOPPED else "paused"
                self._end(self.asked_to, f"{words} by its owner", words)
        except RunPaused as paused:
            self._end(RunState.PAUSED, paused.reason, paused.code)
        except CheckpointLost as lost:
            self._replace(lost)
        except (CheckpointError, OSError) as error:
            self._end(RunState.PAUSED, f"the server's disk: {error}", "disk")
        except FedplatError as error:
            self._end(RunState.FAILED, error.message, "failed")
        except Exception:  # noqa: BLE001 (the boundary of a run: whatever it was, the run ends and says so)
            _log.exception("run %s", self.run_id)
            self._end(RunState.FAILED, "an error that nobody foresaw; the server's log has it", "internal")
        finally:
            self._link.close_run(flower_run)

    def _until_done(self, flower_run: int) -> None:
        office = Office(
            run_id=self.run_id,
            spec=self._spec,
            home=self._home,
            store=self._store,
            link=self._link,
            road=self._road,
            registry=self._registry,
            flower_run=flower_run,
            stop=self._stop,
            turns=self._turns,
            let_go=self._let_go,
            ca_fingerprint=self._ca_fingerprint,
        )
        lost: Counter[int] = Counter()
        outages: Counter[int] = Counter()
        while True:
            try:
                self._live_through(office)
                return
            except StoreUnavailableError as error:
                _log.warning("run %s waits for the database: %s", self.run_id, error.message)
                self.live = replace(self.live, activity="waiting for the database", waiting_for=())
                self._await_database()
                self._count(outages, self.live.round, MAX_OUTAGES, RunPaused(error.message, "database"))
            except RoundLost as error:
                number = self._abandon_open_round(str(error))
                self._count(lost, number, MAX_LOST, RunPaused(str(error), "round_lost"))

    @staticmethod
    def _count(seen: Counter[int], number: int, most: int, paused: RunPaused) -> None:
        """What interrupts one round again and again needs a person: raises RunPaused."""
        seen[number] += 1
        if seen[number] >= most:
            raise RunPaused(f"round {number} was interrupted {most} times, at last: {paused.reason}", paused.code)

    def _await_database(self) -> None:
        if self._store.wait_until_back(self._stop, DATABASE_PATIENCE_S):
            return
        while not self._stop.is_set():
            if self._store.wait_until_back(self._stop, DATABASE_PATIENCE_S):
                raise RunPaused(f"the database was away for more than {DATABASE_PATIENCE_S:.0f} s", "database")
        raise RunStopped

    def _abandon_open_round(self, why: str) -> int:
        number = self._store.runs.get(self.run_id).rounds_committed + 1
        self._store.rounds.abandon(run_id=self.run_id, number=number, detail={"why": why})
        return number

    def _end(self, state: RunState, reason: str, code: str) -> None:
        def write() -> None:
            self._store.runs.set_state(run_id=self.run_id, state=state, reason=reason, reason_code=code)

        try:
            try:
                write()
            except StoreUnavailableError:
                self._store.wait_until_back(threading.Event(), LAST_WORD_PATIENCE_S)
                write()
        except FedplatError as error:
            _log.error("run %s should be %s (%s), but: %s", self.run_id, state, reason, error)

    def _replace(self, lost: CheckpointLost) -> None:
        """A committed round never changes: a run whose last weights are damaged goes on as a child, from good ones."""
        self._store.events.append(
            kind="checkpoint.damaged", actor="server", run_id=self.run_id, detail={"problem": lost.problem}
        )
        if lost.good is None:
            self._end(RunState.FAILED, f"{lost.problem}; no other checkpoint is good", "checkpoint")
            return
        number = lost.good.manifest.round
        child = self._continue_as_child(self.run_id, number)
        self._end(RunState.STOPPED, f"{lost.problem}; goes on as run {child} from round {number}", "checkpoint")

    # -- rounds -----------------------------------------------------------------------------------------------------

    def _live_through(self, office: Office) -> None:
        run = self._store.runs.get(self.run_id)
        if run.layout is None:
            since = time.monotonic()
            self._set_state(RunState.RECRUITING)

            def waiting(missing: Sequence[str], have: int, minimum: int, behind: str | None) -> None:
                self._watch("recruiting", 0, missing, have, minimum, since)
                if behind is not None:
                    self.live = replace(self.live, activity=f"waiting for run {behind} to recruit")

            start = begin(office, run, waiting)
        else:
            if run.state is RunState.PAUSED:
                self._set_state(RunState.RUNNING)
            start = resume(office, run)
        membership = Membership(office, start, self._waits)
        self._membership = membership
        for member in self._registry.members():
            self._link.on_message(member.node_id)  # whoever is not in it hears that now
        try:
            model, reason = self._rounds(office, start, membership)
            self._close(office, start, membership, model)
        finally:
            membership.close()
        code, text = (reason.code, reason.text) if reason else (None, None)
        self._store.runs.set_state(run_id=self.run_id, state=RunState.FINISHED, reason=text, reason_code=code)

    def _rounds(self, office: Office, start: Start, membership: Membership) -> tuple[Checkpoint, StopReason | None]:
        model, number = start.model, start.committed
        while number < self._spec.rounds.count:
            if (reason := self._reason_to_stop(start)) is not None:
                return model, reason
            number += 1
            task = self._open_task(number, model, start.context)
            if task is None:
                task = self._new_task(number, model, start.context, membership)
            else:
                self._set_state(RunState.RUNNING)
            model = self._round(office, start, membership, task)
        return model, None

    def _new_task(self, number: int, model: Checkpoint, context: RunContext, membership: Membership) -> RoundTask:
        """A step that no silo has seen, with everybody who is there; masked ones of those whose keys are known."""
        while True:
            members = membership.next_round()
            self._set_state(RunState.RUNNING)
            names, epoch = tuple(m.name for m in members), None
            try:
                if context.secure is not None:
                    epoch, names = context.secure.silos_for(number - 1, members)
                    self._note_without(membership, context.secure)
                return RoundTask(number, self._store.secure.next_step(self.run_id), model, names, epoch)
            except RunPaused:
                if context.secure is None or not self._note_without(membership, context.secure):
                    raise  # else the next round waits for them, as for everybody who is away

    @staticmethod
    def _note_without(membership: Membership, secure: SecureRun) -> bool:
        """Who gave no key for the new epoch, and may later, is away from now on. Whether there are such silos."""
        before = set(membership.away)
        for silo, reason in secure.without.items():
            if reason.code is Code.NO_ANSWER:
                membership.missed([silo])
            elif reason.code in LATER:
                membership.lost(silo, reason)
        secure.without = {}
        return bool(set(membership.away) - before)

    def _open_task(self, number: int, model: Checkpoint, context: RunContext) -> RoundTask | None:
        """The step of this round that was begun and interrupted, to be finished with the same roster, less the silos
        that have failed in it already: their round is lost, and they are not asked twice, unless too few are left."""
        rows = [row for row in self._store.rounds.list(self.run_id) if row.number == number]
        if not rows or rows[0].state not in (RoundState.TRAINING, RoundState.AGGREGATING):
            return None
        out = (SiloRoundState.FAILED, SiloRoundState.MISSED)
        parts = self._store.rounds.silo_rounds(self.run_id, number)
        roster = tuple(part.silo_name for part in parts if part.state not in out)
        if context.secure is None:
            asked, epoch = roster, None
            enough = rows[0].state is not RoundState.TRAINING or len(roster) >= context.minimum
        else:
            # Masks are those of all silos that were asked, also where one of them has failed.
            epoch, begun = context.secure.newest(), self._store.secure.step(self.run_id, rows[0].step)
            asked = roster if begun is None else tuple(begun.silos)
            fixed = begun is not None and begun.cohort is not None
            enough = fixed or len(roster) >= context.smallest_cohort(len(asked))
        if not enough:
            self._abandon_open_round("too few of its silos are left")
            return None
        return RoundTask(number, rows[0].step, model, asked, epoch)

    def _round(self, office: Office, start: Start, membership: Membership, task: RoundTask) -> Checkpoint:
        since, minimum = time.monotonic(), start.context.smallest_cohort(len(task.roster))

        def waiting(missing: Sequence[str], have: int) -> None:
            self._watch("training", task.number, missing, have, minimum, since)

        waiting(task.roster, 0)
        with office.inquiry(TrainReply) as inquiry:
            result = run_round(start.context, task, office.members(task.roster), inquiry, membership, waiting)
        membership.missed(result.missed)
        self._prune(start)
        return result.model

    def _prune(self, start: Start) -> None:
        section = self._spec.checkpoint
        start.context.checkpoints.prune(section.keep_last, every=section.every, best=self._best_round())

    def _best_round(self) -> int | None:
        metric, best = self._spec.checkpoint.keep_best, None
        if metric is None:
            return None
        for number, figures in self._history():
            value = figures.get(metric)
            if value is not None and (best is None or is_better(metric, value, best[1])):
                best = number, value
        return best[0] if best else None

    # -- the end ----------------------------------------------------------------------------------------------------

    def _history(self) -> list[tuple[int, dict[str, float]]]:
        """(round, figures of its weights), as far as they are measured."""
        found: dict[int, dict[str, float]] = {}
        for row in self._store.rounds.evaluations(self.run_id):
            figures = {k: float(v) for k, v in row.metrics.items() if isinstance(v, int | float)}
            if row.split is Split.TEST:
                loss = {} if row.loss is None else {"loss": row.loss}
                found.setdefault(row.round_number, {}).update(figures | loss)
            elif "divergence" in figures:
                found.setdefault(row.round_number, {})["divergence"] = figures["divergence"]
        return sorted(found.items())

    def _reason_to_stop(self, start: Start) -> StopReason | None:
        if self._spec.stop == type(self._spec.stop)():
            return None
        begun = self._store.runs.get(self.run_id).started_at
        elapsed_s = (datetime.now(UTC) - begun).total_seconds() if begun else 0.0
        return find_reason(self._spec.stop, self._history(), elapsed_s)

    def _close(self, office: Office, start: Start, membership: Membership, model: Checkpoint) -> None:
        """The last weights are measured too."""
        self._set_state(RunState.FINISHING)
        number = model.manifest.round
        members = membership.present()
        self._watch("closing evaluation", number, [m.name for m in members], 0, 0, time.monotonic())
        if start.context.secure is not None:
            masked_evaluation(
                start.context, start.context.secure, model, members, lambda: office.inquiry(EvaluateReply)
            )
        else:
            with office.inquiry(EvaluateReply) as inquiry:
                closing_evaluation(start.context, model, members, inquiry)
        self._prune(start)

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _set_state(self, state: RunState, reason: str | None = None) -> None:
        self._store.runs.set_state(run_id=self.run_id, state=state, reason=reason)

    def _waits(self, missing: Sequence[str], have: int, minimum: int) -> None:
        """Below the minimum between two rounds."""
        if self.live.activity != "waiting":
            self._set_state(RunState.WAITING, f"waiting for {', '.join(missing)}")
        since = self.live.since_s if self.live.activity == "waiting" else time.monotonic()
        self._watch("waiting", self.live.round, missing, have, minimum, since)

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
