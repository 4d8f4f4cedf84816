"""The runs that this silo takes part in, in memory and on disk."""

from __future__ import annotations

import hmac
import threading
from contextlib import suppress

from pydantic import ValidationError

from fedplat.canonical import sha256_hex
from fedplat.errors import FedplatError, PolicyError
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec
from fedplat.wire.messages import JoinReply, JoinRequest
from fedplat_silo import approvals
from fedplat_silo.accounts import Account, Accounts
from fedplat_silo.data.errors import Refused
from fedplat_silo.participation import Participation
from fedplat_silo.policy import Policy, load_policy
from fedplat_silo.records import known_hash, live_runs, load_run, remember_run, retire_run, tidy
from fedplat_silo.spool import Spool
from fedplat_silo.status import is_paused
from fedplat_silo.trainer.crew import remove_leftover_crews
from fedplat_silo.workplace import Site


class Runs:
    """Thread-safe; each run's messages come from that run's own thread. One process makes one, at its start."""

    def __init__(self, site: Site) -> None:
        self._site = site
        tidy(site.home)
        remove_leftover_crews(site.home.runs)
        self._joined = set(live_runs(site.home))
        self._accounts = Accounts(site.home)
        self._accounts.close_all_but(self._joined)
        self._taking_part: dict[str, Participation] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The runs that go on here, sorted."""
        with self._lock:
            return tuple(sorted(self._joined | set(self._taking_part)))

    def join(self, request: JoinRequest) -> JoinReply:
        """Takes part, or raises Refused with the reason: the spec, the policy, other runs, then the data."""
        spec = _parse(request)
        self._check_known(request.run, request.spec_hash)
        if spec.silos.names and self._site.home.name not in spec.silos.names:
            raise Refused(Reason.of(Code.NOT_NAMED), f"run {request.run} is for {', '.join(spec.silos.names)}")
        self.check_paused()
        policy = load_policy(self._site.home.policy)
        refusal = policy.check(spec, request.num_silos)
        if refusal is not None:
            self.release(request.run)
            raise Refused(refusal, str(refusal))
        self._check_approved(request.run, spec, policy)
        part = self._reserve(self._part(request.run, spec, policy))
        try:
            reply = part.join(request.parent, request.ledger)
            remember_run(self._site.home, request.run, spec)
        except BaseException:
            self.release(request.run)
            raise
        with self._lock:
            self._joined.add(request.run)
        return reply

    def find(self, run: str, spec_hash: str) -> Participation:
        """A run that was joined, perhaps by an earlier process. Raises Refused for another spec or an unknown run."""
        self._check_known(run, spec_hash)
        with self._lock:
            part = self._taking_part.get(run)
            if part is not None:
                with suppress(PolicyError):  # a broken one is as good as none: the last one holds
                    part.policy = load_policy(self._site.home.policy)
            if part is None and run in self._joined:
                spec = load_run(self._site.home, run)
                part = self._part(run, spec, load_policy(self._site.home.policy))
                self._taking_part[run] = part
        if part is None:
            raise Refused(Reason.of(Code.NOT_JOINED), f"run {run} is not one that this silo has joined")
        return part

    def warm_up(self) -> None:
        """Starts the workers of the runs that an earlier process has joined: that takes longer than to connect."""
        for run in sorted(self._joined):
            with suppress(OSError, ValueError, FedplatError, Refused):  # it shows when the run asks for something
                if not is_paused(self._site.home):
                    self.find(run, known_hash(self._site.home, run) or "").warm_up()

    def check_paused(self) -> None:
        """Raises Refused if the silo's administrator has paused it."""
        if is_paused(self._site.home):
            raise Refused(Reason.of(Code.PAUSED), "paused by `fedplat client pause`")

    def cancel(self, run: str) -> None:
        """The server says that the run is over: what it does is ended; its own thread gets Cancelled, and tidies up
        with `end`."""
        with self._lock:
            self._joined.discard(run)
        self.release(run)

    def interrupt(self, run: str) -> None:
        """What the run does just now is of no use any more: its thread gets Cancelled, and goes on with what comes
        next."""
        with self._lock:
            part = self._taking_part.get(run)
        if part is not None:
            part.interrupt()

    def end(self, run: str) -> None:
        """Its spool and its folder go; the local parameters stay, and which spec it was. OSError, LedgerError."""
        spec_hash = known_hash(self._site.home, run)
        Spool(self._site.home.spool).forget(run)
        self._accounts.close(run)
        if spec_hash is not None:
            retire_run(self._site.home, run, spec_hash)

    def release(self, run: str) -> None:
        """Stops a run's workers; what is on disk stays."""
        with self._lock:
            part = self._taking_part.pop(run, None)
        if part is not None:
            part.close()

    def stop(self) -> None:
        """Stops all workers: the process ends."""
        with self._lock:
            parts = list(self._taking_part.values())
        for part in parts:
            part.close()

    def _part(self, run: str, spec: RunSpec, policy: Policy) -> Participation:
        return Participation(run, spec, policy, self._site, Account(self._accounts, run, spec))

    def _check_approved(self, run: str, spec: RunSpec, policy: Policy) -> None:
        if policy.approval == "auto":
            return
        decision = approvals.ask(self._site.home, run, spec).decision
        if decision != "approved":
            self.release(run)
            code = Code.APPROVAL_PENDING if decision == "pending" else Code.APPROVAL_REFUSED
            raise Refused(Reason.of(code), f"run {run} is {decision}: fedplat client approve {run}")

    def _reserve(self, part: Participation) -> Participation:
        """The run's place among those that may go on at the same time, before anything is started."""
        with self._lock:
            known = self._taking_part.get(part.run)
            if known is not None:
                known.policy = part.policy
                return known
            if len((self._joined | set(self._taking_part)) - {part.run}) >= part.policy.max_parallel_runs:
                raise Refused(Reason.of(Code.BUSY), f"run {part.run} has to wait for another run")
            self._taking_part[part.run] = part
            return part

    def _check_known(self, run: str, spec_hash: str) -> None:
        known = known_hash(self._site.home, run)
        if known is not None and not hmac.compare_digest(known.encode(), spec_hash.encode()):
            raise Refused(Reason.of(Code.SPEC_MISMATCH), f"run {run}: spec {spec_hash}, known is {known}")


def _parse(request: JoinRequest) -> RunSpec:
    try:
        spec = RunSpec.model_validate_json(request.spec)
    except ValidationError as error:
        raise Refused(Reason.of(Code.MESSAGE_INVALID), f"run {request.run}: {error}") from None
    if spec.hash != request.spec_hash or sha256_hex(request.spec) != request.spec_hash:
        raise Refused(Reason.of(Code.MESSAGE_INVALID), f"run {request.run}: the spec has another hash than it says")
    return spec
