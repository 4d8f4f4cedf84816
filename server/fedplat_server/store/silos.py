"""Silos and the invites by which they enrol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from fedplat.errors import ConflictError, IdentityError, NotFoundError
from fedplat.names import check_silo_name
from fedplat_server.store.columns import utc_now
from fedplat_server.store.events import append_event
from fedplat_server.store.records import Invite, Silo
from fedplat_server.store.rows import every, first, one, upsert
from fedplat_server.store.session import Database
from fedplat_server.store.tables import InviteKind, SiloState, invites, silos

_IS_OPEN = (invites.c.used_at.is_(None), invites.c.cancelled_at.is_(None))


class Silos:
    """The silos of the federation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def invite(
        self,
        *,
        name: str,
        secret_hash: str,
        expires_at: datetime,
        kind: InviteKind = InviteKind.ENROL,
        actor: str = "server",
    ) -> Invite:
        """Open an invite and cancel the older open ones of that name.

        Raises ConflictError for an enrolled silo's `enrol` or a missing one's `rotate`, WireError for a name
        that no silo can have.
        """
        check_silo_name(name)
        with self._database.write() as connection:
            _check_invitable(_find(connection, name), name, kind)
            now = utc_now()
            _cancel_invites(connection, name, now)
            values = {"silo_name": name, "secret_hash": secret_hash, "kind": kind}
            connection.execute(insert(invites).values(**values, created_at=now, expires_at=expires_at))
            append_event(connection, kind="silo.invited", actor=actor, silo_name=name, detail={"kind": kind.value})
            return one(connection, Invite, select(invites).where(invites.c.secret_hash == secret_hash))

    def redeem(
        self,
        *,
        name: str,
        secret_hash: str,
        now: datetime,
        public_key_pem: str,
        fingerprint: str,
        node_id: int,
    ) -> Silo:
        """Use an invite: register a new silo, or a new key for one (which keeps its node id).

        The same secret with the same key again returns the same silo, for the first answer may have been lost.
        Raises IdentityError that says why an invite or key is not accepted.
        """
        with self._database.write() as connection:
            found = first(connection, Invite, select(invites).where(invites.c.secret_hash == secret_hash))
            silo = _find(connection, name)
            if silo and found and _was_redeemed(found, silo, public_key_pem):
                return silo
            invite = _check_invite(found, name, now)
            _check_key(connection, name, fingerprint)
            connection.execute(update(invites).where(invites.c.id == invite.id).values(used_at=now))
            key = {"public_key_pem": public_key_pem, "fingerprint": fingerprint}
            if invite.kind is InviteKind.ROTATE:
                upsert(connection, silos, {"name": name}, {**key, "rotated_at": now})
            else:
                upsert(connection, silos, {"name": name}, {**key, **_newcomer(node_id, now)})
            done = "silo.rotated" if invite.kind is InviteKind.ROTATE else "silo.enrolled"
            detail = {"fingerprint": fingerprint}
            append_event(connection, kind=done, actor=name, silo_name=name, detail=detail)
            return _get(connection, name)

    def get(self, name: str) -> Silo:
        """The silo of that name; NotFoundError without one."""
        with self._database.read() as connection:
            return _get(connection, name)

    def by_fingerprint(self, fingerprint: str) -> Silo | None:
        """The silo whose key it is, revoked ones too; None for a key that nobody has."""
        with self._database.read() as connection:
            return first(connection, Silo, select(silos).where(silos.c.fingerprint == fingerprint))

    def list(self) -> Sequence[Silo]:
        """Every silo, by name."""
        with self._database.read() as connection:
            return every(connection, Silo, select(silos).order_by(silos.c.name))

    def invites(self, *, name: str | None = None) -> Sequence[Invite]:
        """Every invite, oldest first; of one name or of all."""
        query = select(invites).order_by(invites.c.id)
        if name is not None:
            query = query.where(invites.c.silo_name == name)
        with self._database.read() as connection:
            return every(connection, Invite, query)

    def cancel_invites(self) -> int:
        """Cancel every open invite; says how many."""
        with self._database.write() as connection:
            return connection.execute(update(invites).where(*_IS_OPEN).values(cancelled_at=utc_now())).rowcount

    def revoke(self, name: str, *, actor: str = "server") -> Silo:
        """Accept this silo's key no more, and cancel its open invites. Again is no change."""
        with self._database.write() as connection:
            now = utc_now()
            _cancel_invites(connection, name, now)
            if _get(connection, name).state is SiloState.ENROLLED:
                upsert(connection, silos, {"name": name}, {"state": SiloState.REVOKED, "revoked_at": now})
                append_event(connection, kind="silo.revoked", actor=actor, silo_name=name)
            return _get(connection, name)

    def seen(self, times: Mapping[str, datetime]) -> None:
        """Note when each silo was last heard; an earlier time than the one known changes nothing."""
        if not times:
            return
        seen_at = bindparam("seen_at", type_=silos.c.last_seen_at.type)
        later = or_(silos.c.last_seen_at.is_(None), silos.c.last_seen_at < seen_at)
        query = update(silos).where(silos.c.name == bindparam("silo"), later).values(last_seen_at=seen_at)
        with self._database.write() as connection:
            connection.execute(query, [{"silo": name, "seen_at": at} for name, at in times.items()])


def _find(connection: Connection, name: str) -> Silo | None:
    return first(connection, Silo, select(silos).where(silos.c.name == name))


def _get(connection: Connection, name: str) -> Silo:
    silo = _find(connection, name)
    if silo is None:
        raise NotFoundError(f"there is no silo {name}", hint="See who is enrolled: fedplat silo list")
    return silo


def _newcomer(node_id: int, now: datetime) -> dict[str, object]:
    gone = {"revoked_at": None, "last_seen_at": None, "rotated_at": None}
    return {"node_id": node_id, "state": SiloState.ENROLLED, "enrolled_at": now, **gone}


def _cancel_invites(connection: Connection, name: str, now: datetime) -> None:
    connection.execute(update(invites).where(invites.c.silo_name == name, *_IS_OPEN).values(cancelled_at=now))


def _check_invitable(silo: Silo | None, name: str, kind: InviteKind) -> None:
    enrolled = silo is not None and silo.state is SiloState.ENROLLED
    if kind is InviteKind.ENROL and enrolled:
        raise ConflictError(
            f"silo {name} is enrolled already",
            hint=f"For a new key: fedplat silo rotate {name}. To start over: fedplat silo revoke {name}",
        )
    if kind is InviteKind.ROTATE and not enrolled:
        raise ConflictError(
            f"silo {name} is not enrolled, so it has no key to rotate", hint=f"fedplat silo invite {name}"
        )


def _was_redeemed(invite: Invite, silo: Silo, public_key_pem: str) -> bool:
    mine = invite.silo_name == silo.name and silo.state is SiloState.ENROLLED
    return mine and invite.used_at is not None and silo.public_key_pem == public_key_pem


def _check_invite(invite: Invite | None, name: str, now: datetime) -> Invite:
    hint = f"Ask the server's administrator for a new one: fedplat silo invite {name}"
    if invite is None:
        raise IdentityError(f"this invite for silo {name} is unknown to the server", hint=hint)
    if invite.silo_name != name:
        raise IdentityError(
            f"this invite is for another silo, {invite.silo_name}, not for {name}",
            hint=f"Join as {invite.silo_name}, or ask for an invite for {name}.",
        )
    if invite.used_at is not None:
        raise IdentityError(f"this invite was already used at {_at(invite.used_at)}", hint=hint)
    if invite.cancelled_at is not None:
        raise IdentityError(f"this invite was cancelled at {_at(invite.cancelled_at)}", hint=hint)
    if invite.expires_at <= now:
        raise IdentityError(f"this invite expired at {_at(invite.expires_at)}", hint=hint)
    return invite


def _check_key(connection: Connection, name: str, fingerprint: str) -> None:
    owner = first(connection, Silo, select(silos).where(silos.c.fingerprint == fingerprint))
    if owner is not None and owner.name != name:
        raise IdentityError(
            f"silo {name} offers the key that silo {owner.name} has",
            hint="Every silo has a key of its own: join from a fresh home directory.",
        )


def _at(time: datetime) -> str:
    return time.isoformat(sep=" ", timespec="seconds")
