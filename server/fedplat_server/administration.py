"""What an administrator can do: the operations behind `fedplat silo` and `fedplat run`."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from fedplat.errors import IdentityError, NotFoundError, SpecError, WireError
from fedplat.identity import (
    Invite,
    Label,
    fingerprint,
    load_public,
    secret_hash,
    verify,
)
from fedplat.spec import RunSpec
from fedplat.wire.http import EnrolReply, EnrolRequest
from fedplat_server.checkpoints import Checkpoints
from fedplat_server.coordinator import Coordinator
from fedplat_server.registry import Registry
from fedplat_server.store import InviteKind, Store
from fedplat_server.superlink import Link
from fedplat_server.views import View, checkpoint_view, ledgers_view, row, run_line, run_view, silo_view, snapshot

_SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class ServerIdentity:
    """How silos know this server: its address, its CA's fingerprint, and its own public key."""

    address: str
    ca_fingerprint: str
    public_key_pem: str


@dataclass(frozen=True)
class Administration:
    """Thread-safe."""

    identity: ServerIdentity
    store: Store
    link: Link
    registry: Registry
    coordinator: Coordinator

    # -- silos --------------------------------------------------------------------------------------------------------

    def admit_enrolled(self) -> None:
        """Fill the registry from the store, at start-up."""
        for silo in self.store.silos.list():
            self.registry.admit(silo.name, silo.node_id, silo.public_key_pem)
            if silo.state == "enrolled":
                self.link.add_node(silo.node_id, silo.public_key_pem)
            else:
                self.registry.expel(silo.name)

    def invite(self, name: str, *, rotate: bool, lifetime_s: int = _SECONDS_A_DAY) -> View:
        """A one-time invite, for a new silo or for an enrolled one's new key. The line is shown once."""
        invite = Invite.new(self.identity.address, self.identity.ca_fingerprint, name, time.time(), lifetime_s)
        kept = self.store.silos.invite(
            name=name,
            secret_hash=secret_hash(invite.secret),
            expires_at=datetime.now(UTC) + timedelta(seconds=lifetime_s),
            kind=InviteKind.ROTATE if rotate else InviteKind.ENROL,
        )
        return {"silo": name, "invite": invite.encode(), "expires_at": kept.expires_at.isoformat()}

    def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Redeem an invite: the secret proves the permission, the signature that the silo holds the key."""
        try:
            secret = bytes.fromhex(request.secret)
            proof = bytes.fromhex(request.proof)
        except ValueError:
            raise WireError("malformed EnrolRequest: secret or proof") from None
        key = load_public(request.public_key)
        digest = secret_hash(secret)
        verify(key, Label.ENROL, proof, self.identity.ca_fingerprint, request.silo, digest, request.public_key)
        silo = self.store.silos.redeem(
            name=request.silo,
            secret_hash=digest,
            now=datetime.now(UTC),
            public_key_pem=request.public_key,
            fingerprint=fingerprint(key),
            node_id=secrets.randbits(62) + 2,
        )
        self._let_in(silo.name, silo.node_id, silo.public_key_pem)
        return EnrolReply(silo=silo.name, node_id=str(silo.node_id), server_key=self.identity.public_key_pem)

    def _let_in(self, name: str, node_id: int, pem: str) -> None:
        old = self.registry.member(name)
        if old is not None and old.public_key_pem == pem:
            return
        self.registry.admit(name, node_id, pem)
        self.link.add_node(node_id, pem)
        self.link.on_message(node_id)

    def silos(self) -> list[View]:
        """All silos, with their presence."""
        return [silo_view(silo, self.registry) for silo in self.store.silos.list()]

    def silo(self, name: str) -> View:
        """One silo with its invites."""
        view = silo_view(self.store.silos.get(name), self.registry)
        view["invites"] = [row(i, "id", "secret_hash", "silo_name") for i in self.store.silos.invites(name=name)]
        return view

    def revoke(self, name: str, *, actor: str = "admin") -> View:
        """Shut a silo out at once, also when it is connected."""
        silo = self.store.silos.revoke(name, actor=actor)
        member = self.registry.expel(name)
        if member is not None:
            self.link.remove_node(member.node_id)
            self.link.on_message(member.node_id)
            self.link.wake_runs()
        return silo_view(silo, self.registry)

    def leave(self, name: str) -> None:
        """A silo leaves by itself."""
        self.revoke(name, actor=name)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def submit(self, spec: object, init: bytes | None) -> View:
        """Begin a run from the spec's JSON; `init` is the safetensors file that the spec names by its hash."""
        try:
            checked = RunSpec.model_validate(spec)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            hint = "The command has accepted it: is the running server of another version? Start it anew."
            raise SpecError(f"the run spec is not valid: {where}: {problem['msg']}", hint=hint) from None
        if init is not None and checked.model.init != f"sha256:{hashlib.sha256(init).hexdigest()}":
            raise IdentityError("the initial weights are not those that the spec names")
        return run_line(self.coordinator.submit(checked, init))

    def runs(self) -> list[View]:
        """All runs, oldest first."""
        return [run_line(run) for run in self.store.runs.list()]

    def run(self, prefix: str) -> View:
        """A run with all that is known of it."""
        return run_view(self.store.runs.resolve(prefix), self.store)

    def ledgers(self) -> View:
        """What silos have signed of their ledgers, and which runs used their data."""
        return ledgers_view(self.store, self.store.silos.list()) | {"address": self.identity.address}

    def snapshot(self, prefix: str) -> View:
        """A run as it is this moment."""
        run = self.store.runs.resolve(prefix)
        return snapshot(
            run, self.coordinator.live(run.id), self.store, self.registry, self.coordinator.road.transfers(run.id)
        )

    def stop(self, prefix: str) -> View:
        """Stop a run for good."""
        return run_line(self.coordinator.stop(self.store.runs.resolve(prefix).id))

    def pause(self, prefix: str) -> View:
        """Pause a run until it is continued."""
        return run_line(self.coordinator.pause(self.store.runs.resolve(prefix).id))

    def go_on(self, prefix: str) -> View:
        """Continue a paused run."""
        return run_line(self.coordinator.go_on(self.store.runs.resolve(prefix).id))

    def resume(self, prefix: str, from_round: int | None) -> View:
        """Begin a child run from a checkpoint."""
        return run_line(self.coordinator.resume(self.store.runs.resolve(prefix).id, from_round))

    def checkpoints(self, prefix: str) -> list[View]:
        """The checkpoints of a run, each with whether it is good."""
        run = self.store.runs.resolve(prefix)
        folder = Checkpoints(self.coordinator.home.checkpoints(run.id), run.spec_hash)
        return [checkpoint_view(folder, number) for number in folder.rounds()]

    def weights(self, prefix: str, number: int | None = None) -> Path:
        """The file with the last committed weights, or with those of a round; verified."""
        run = self.store.runs.resolve(prefix)
        if number is not None:
            folder = Checkpoints(self.coordinator.home.checkpoints(run.id), run.spec_hash)
            if number not in folder.rounds():
                there = ", ".join(map(str, folder.rounds())) or "none"
                raise NotFoundError(f"run {run.id} has no checkpoint of round {number}", hint=f"there are: {there}")
            return folder.verified(number)
        if run.weights_path is None or not Path(run.weights_path).exists():
            raise NotFoundError(f"run {run.id} has no weights yet", hint=f"fedplat run watch {run.id}")
        return Path(run.weights_path)

    def events(self, prefix: str | None, after: int) -> list[View]:
        """Who did what when."""
        run_id = self.store.runs.resolve(prefix).id if prefix else None
        return [row(e) for e in self.store.events.list(run_id=run_id, after=after)]
