"""Who is in the next round: the run's silos but those that are away, and, if the spec allows it, late comers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fedplat.reasons import LATER, PASSING, Code, Reason
from fedplat.wire.messages import JoinReply, layout_from_wire
from fedplat_server.beginning import Office, Start
from fedplat_server.exchange import Inquiry
from fedplat_server.recruiting import ASK_AGAIN_S, RunPaused, unusable
from fedplat_server.registry import Member
from fedplat_server.store import RunSilo, RunSiloState
from fedplat_server.uploads import told


@dataclass(frozen=True)
class Away:
    """A silo of the run that is not there now."""

    reason: Reason
    since: datetime

    @classmethod
    def from_row(cls, row: RunSilo) -> Away:
        """As the last process of the server has left it."""
        return cls(Reason(code=Code(row.reason_code or Code.NO_ANSWER)), row.updated_at)

    def __str__(self) -> str:
        return f"{self.reason}, since {self.since:%Y-%m-%d %H:%M:%S} UTC"


class Membership:
    """The silos of one run. `waiting(missing, have, minimum)` hears whom the run waits for.

    A silo that did not answer is back when it is here. One that is paused, or has lost what it knew of the run, is
    asked to join again until it does: that is cheap, and checks it as it checks a late comer.
    """

    def __init__(self, office: Office, start: Start, waiting: Callable[[Sequence[str], int, int], None]) -> None:
        self._office = office
        self._start = start
        self._waiting = waiting
        rows = office.store.runs.silos(office.run_id)
        self.names = set(start.members)
        self.away = {row.silo_name: Away.from_row(row) for row in rows if row.state is RunSiloState.AWAY}
        self._infos = [row.info for row in rows if row.silo_name in self.names]
        self._joining: Inquiry[JoinReply] = office.inquiry(JoinReply)
        self._asked = {row.silo_name for row in rows}
        # By silo, the time from which on it is asked to join (again).
        self._ask_at_s = {silo: 0.0 for silo, away in self.away.items() if away.reason.code in LATER}

    def close(self) -> None:
        """Withdraw what silos were asked."""
        self._joining.__exit__()

    def wants(self, silo: str) -> bool:
        """Whether a silo should keep what it has of this run."""
        return silo in self.names or silo in self._joining.waiting_for

    def next_round(self) -> list[Member]:
        """The silos of the next round. Waits for the minimum; RunPaused if it does not come."""
        since = time.monotonic()
        while True:
            members = self.present()
            minimum = self._start.context.minimum
            if len(members) >= minimum:
                return members
            self._wait(len(members), minimum, time.monotonic() - since)

    def present(self) -> list[Member]:
        """The run's silos that are not away, as far as is known this moment; who may be back is asked."""
        for silo in sorted(self.names - self.away.keys()):
            if self._office.registry.member(silo) is None:
                self._mark(silo, Reason.of(Code.REVOKED))
        for silo in sorted(self.away.keys() - self._ask_at_s.keys()):
            if self._office.registry.is_here(silo):
                self._mark(silo, None)
        self._ask_to_join()
        for given in self._joining.answers(0.0):
            self._take(given.silo, given.parcel.body)
        return self._office.members(sorted(self.names - self.away.keys()))

    def _wait(self, have: int, minimum: int, waited_s: float) -> None:
        missing = sorted(self.away.keys() & self.names)
        if waited_s > self._office.spec.silos.wait_s:
            why = "; ".join(f"{silo}: {self.away[silo]}" for silo in missing) or "nobody else takes part"
            text = f"{have} of at least {minimum} silos are there after {waited_s:.0f} s ({why})"
            raise RunPaused(text, "too_few_silos")
        self._waiting(missing, have, minimum)
        self._joining.pause(1.0)

    def missed(self, silos: Sequence[str]) -> None:
        """Silos that did not answer in a round and are not here: the next rounds do not wait for them."""
        for silo in silos:
            if silo not in self.away and not self._office.registry.is_here(silo):
                self._mark(silo, Reason.of(Code.NO_ANSWER))

    def lost(self, silo: str, reason: Reason) -> None:
        """A silo says that it can do nothing for a while, or that it knows the run no more: it is asked to join."""
        self._mark(silo, reason)
        self._ask_at_s[silo] = time.monotonic() + (0.0 if reason.code is Code.NOT_JOINED else ASK_AGAIN_S)

    def _mark(self, silo: str, reason: Reason | None) -> None:
        if reason is None:
            del self.away[silo]
        else:
            self.away[silo] = Away(reason, datetime.now(UTC))
        self._office.store.runs.join(
            run_id=self._office.run_id,
            silo_name=silo,
            state=RunSiloState.ACCEPTED if reason is None else RunSiloState.AWAY,
            reason_code=reason.code if reason else None,
            reason=told(reason) if reason else None,
        )

    def _ask_to_join(self) -> None:
        spec, here = self._office.spec, self._office.registry.is_here
        if spec.silos.late_join:
            others = {m.name for m in self._office.registry.members() if here(m.name)} - self._asked
            self._ask_at_s |= {s: 0.0 for s in others if not spec.silos.names or s in spec.silos.names}
            self._asked |= others
        now = time.monotonic()
        due = [silo for silo, at_s in sorted(self._ask_at_s.items()) if at_s <= now and here(silo)]
        if due:
            self._ask_at_s |= dict.fromkeys(due, now + ASK_AGAIN_S)
            asked = [m for m in self._office.members(due) if m.name not in self._joining.waiting_for]
            self._office.ask_to_join(self._joining, asked, len(self.names | {*due}))

    def _take(self, silo: str, reply: JoinReply) -> None:
        refused = reply.failed or unusable(reply) or self._misfit(reply)
        if refused is not None and refused.code in PASSING and silo in self.names:
            if silo not in self.away or refused.code != self.away[silo].reason.code:
                self._mark(silo, refused)
            return
        self._office.note_join(silo, reply, refused)
        self.away.pop(silo, None)
        if refused is None:
            self.names.add(silo)
        else:
            self.names.discard(silo)
        if refused is None or refused.code not in LATER:
            self._ask_at_s.pop(silo, None)

    def _misfit(self, reply: JoinReply) -> Reason | None:
        """A late comer has to fit what the others have agreed on."""
        if layout_from_wire(reply.layout).fingerprint != self._start.context.layout.fingerprint:
            return Reason.of(Code.LAYOUT_DIFFERS)
        known = self._infos[0] if self._infos else {}
        if known.get("task_hash", reply.task_hash) != reply.task_hash:
            return Reason.of(Code.TASK_VERSION, task=self._office.spec.task.name)
        if known.get("frozen_hash", reply.frozen_hash) != reply.frozen_hash:
            return Reason.of(Code.FROZEN_DIFFERS)
        secure = self._start.context.secure
        if secure is not None and reply.empty_sums != secure.shape.empty_sums:
            return Reason.of(Code.TASK_VERSION, task=self._office.spec.task.name)
        return None
