"""Enrolment: from an invite to a place in the federation, such that a crash at any point may be repeated."""

from __future__ import annotations

import logging
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from fedplat.durable import remove
from fedplat.errors import IdentityError, NotFoundError, WireError
from fedplat.home import SiloHome
from fedplat.identity import (
    Invite,
    Label,
    check_ca,
    fingerprint,
    load_key,
    new_key,
    public_pem,
    save_key,
    secret_hash,
    show_fingerprint,
    sign,
)
from fedplat.wire.http import EnrolReply, EnrolRequest
from fedplat_silo.membership import Membership, Place, load_place, save_membership
from fedplat_silo.transport import Server, tls_for, tls_for_nobody

log = logging.getLogger(__name__)


def enrol(home: SiloHome, invite: Invite, server: str | None = None) -> None:
    """Joins the federation that the invite is for; with the invite by which it has joined it does nothing.

    `server` overrides the invite's address. Raises IdentityError (with the server's reason, or for another CA or
    certificate), ConnectionLostError, WireError. Needs the home's lock.
    """
    if invite.silo != home.name:
        raise IdentityError(
            f"the invite is for silo {invite.silo}, not {home.name}", hint=f"Join with --silo {invite.silo}."
        )
    place = load_place(home)
    if place is not None and place.invite == secret_hash(invite.secret):
        return
    address = server or invite.server
    ca_pem = _fetch_ca(address, invite)
    pending = home.identity / f"key-{secret_hash(invite.secret)[:16]}.pem"
    key = _key_for(pending)
    reply = _prove(address, ca_pem, invite, key)
    save_membership(home, _membership(address, ca_pem, invite, key, reply))
    remove(pending)
    log.info("silo %s has joined the federation at %s", home.name, address)
    log.info("its key's fingerprint is %s", show_fingerprint(fingerprint(key.public_key())))


def _fetch_ca(address: str, invite: Invite) -> str:
    server = Server(address, tls_for_nobody())
    try:
        ca_pem = server.get("ca").decode("ascii", "replace")
    finally:
        server.close()
    check_ca(ca_pem, invite.ca_fingerprint)
    return ca_pem


def _key_for(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key of this invite: the server accepts the same secret again from the same key only."""
    try:
        return load_key(path)
    except NotFoundError:
        key = new_key()
        save_key(key, path)
        return key


def _prove(address: str, ca_pem: str, invite: Invite, key: ec.EllipticCurvePrivateKey) -> EnrolReply:
    """Shows the secret to a server that has proved itself by the CA, and to no other."""
    public = public_pem(key)
    fields = invite.ca_fingerprint, invite.silo, secret_hash(invite.secret), public
    request = EnrolRequest(
        silo=invite.silo,
        secret=invite.secret.hex(),
        public_key=public,
        proof=sign(key, Label.ENROL, *fields).hex(),
    )
    server = Server(address, tls_for(ca_pem))
    try:
        return EnrolReply.model_validate_json(server.post("enrol", request))
    except ValidationError:
        raise WireError(
            f"the server at {address} answers an enrolment in an unknown way", hint="Compare `fedplat --version`."
        ) from None
    finally:
        server.close()


def _membership(
    address: str, ca_pem: str, invite: Invite, key: ec.EllipticCurvePrivateKey, reply: EnrolReply
) -> Membership:
    place = Place(
        address=address,
        node_id=int(reply.node_id),
        server_key=reply.server_key,
        ca_fingerprint=invite.ca_fingerprint,
        key_fingerprint=fingerprint(key.public_key()),
        invite=secret_hash(invite.secret),
    )
    return Membership(invite.silo, place, ca_pem, key)
