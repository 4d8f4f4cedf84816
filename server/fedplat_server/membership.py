"""Who is in the next round: the run's silos but those that are away, and, if the spec allows it, late comers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fedplat.reasons import Code, Reason
from fedplat.wire.messages import JoinReply, layout_from_wire
from fedplat_server.beginning import Office, Start
from fedplat_server.exchange import Inquiry
from fedplat_server.registry import Member
from fedplat_server.rounds import told
from fedplat_server.store import RunSiloState


class RunPaused(Exception):
    """The run cannot go on now, and waits for a person (`fedplat run continue`)."""

    def __init__(self, reason: str, code: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Membership:
    """The silos of one run. `waiting(missing, have, minimum)` hears whom the run waits for."""

    def __init__(self, office: Office, start: Start, waiting: Callable[[Sequence[str], int, int], None]) -> None:
        self._office = office
        self._start = start
        self._waiting = waiting
        rows = office.store.runs.silos(office.run_id)
        self.names = set(start.members)
        self.away = {row.silo_name for row in rows if row.state is RunSiloState.AWAY}
        self._infos = [row.info for row in rows if row.silo_name in self.names]
        self._late: Inquiry[JoinReply] = office.inquiry(JoinReply)
        self._asked = {row.silo_name for row in rows}

    def close(self) -> None:
        """Withdraw what late comers were asked."""
        self._late.__exit__()

    def wants(self, silo: str) -> bool:
        """Whether a silo should keep what it has of this run."""
        return silo in self.names or silo in self._late.waiting_for

    def next_round(self) -> list[Member]:
        """The silos of the next round. Waits for the minimum; RunPaused if it does not come."""
        since = time.monotonic()
        while True:
            self._welcome_back()
            self._admit_late()
            members = self._office.members(sorted(self.names - self.away))
            minimum = self._start.context.minimum
            if len(members) >= minimum:
                return members
            self._wait(len(members), minimum, time.monotonic() - since)

    def _wait(self, have: int, minimum: int, waited_s: float) -> None:
        missing = sorted(self.away & self.names)
        if waited_s > self._office.spec.silos.wait_s:
            raise RunPaused(
                f"{have} of at least {minimum} silos are there, away: {', '.join(missing) or 'none'}; "
                f"waited {waited_s:.0f} s",
                "too_few_silos",
            )
        self._waiting(missing, have, minimum)
        self._late.pause(1.0)

    def missed(self, silos: Sequence[str]) -> None:
        """Silos that did not answer in a round and are not here: the next rounds do not wait for them."""
        for silo in silos:
            if not self._office.registry.is_here(silo):
                self._mark(silo, away=True)

    def _welcome_back(self) -> None:
        for silo in [s for s in self.away if self._office.registry.is_here(s)]:
            self._mark(silo, away=False)

    def _mark(self, silo: str, *, away: bool) -> None:
        (self.away.add if away else self.away.discard)(silo)
        reason = Reason.of(Code.NO_ANSWER)
        self._office.store.runs.join(
            run_id=self._office.run_id,
            silo_name=silo,
            state=RunSiloState.AWAY if away else RunSiloState.ACCEPTED,
            reason_code=reason.code if away else None,
            reason=told(reason) if away else None,
        )

    def _admit_late(self) -> None:
        spec = self._office.spec
        if not spec.silos.late_join:
            return
        here = [m for m in self._office.registry.members() if self._office.registry.is_here(m.name)]
        new = [m for m in here if m.name not in self._asked and (not spec.silos.names or m.name in spec.silos.names)]
        if new:
            self._asked |= {m.name for m in new}
            self._late.ask(new, self._office.join_request(len(self.names) + len(new)))
        for given in self._late.answers(0.0):
            reply = given.parcel.body
            refused = reply.failed or self._misfit(reply)
            self._office.note_join(given.silo, reply, refused)
            if refused is None:
                self.names.add(given.silo)

    def _misfit(self, reply: JoinReply) -> Reason | None:
        """A late comer has to fit what the others have agreed on."""
        if layout_from_wire(reply.layout).fingerprint != self._start.context.layout.fingerprint:
            return Reason.of(Code.LAYOUT_DIFFERS)
        known = self._infos[0] if self._infos else {}
        if known.get("task_hash", reply.task_hash) != reply.task_hash:
            return Reason.of(Code.TASK_VERSION, task=self._office.spec.task.name)
        if known.get("frozen_hash", reply.frozen_hash) != reply.frozen_hash:
            return Reason.of(Code.FROZEN_DIFFERS)
        return None
