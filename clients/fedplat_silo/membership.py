"""What enrolment leaves on disk: the silo's key, the CA it trusts, and its place in the federation."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, ValidationError

from fedplat.durable import remove, write_atomic
from fedplat.errors import IdentityError, NotFoundError
from fedplat.home import SiloHome
from fedplat.identity import ca_fingerprint, fingerprint, load_key, save_key
from fedplat.identity.keys import read_private
from fedplat.wire.buffers import Digest

_AGAIN = "Run `fedplat client join` again with the --invite; it may be the same one."


class Place(BaseModel):
    """server.json, written last: it says that key.pem and ca.pem are complete and belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    node_id: int
    server_key: str
    ca_fingerprint: Digest
    key_fingerprint: Digest
    invite: Digest
    """Hash of the secret by which this silo enrolled."""


@dataclass(frozen=True)
class Membership:
    """An enrolled silo."""

    silo: str
    place: Place
    ca_pem: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def place_file(home: SiloHome) -> Path:
    """Where the silo's place is kept."""
    return home.identity / "server.json"


def load_place(home: SiloHome) -> Place | None:
    """The silo's place, None if it is not enrolled. Raises IdentityError if it is damaged."""
    try:
        content = read_private(place_file(home))
    except NotFoundError:
        return None
    try:
        return Place.model_validate_json(content)
    except ValidationError:
        raise IdentityError(f"{place_file(home)} is damaged", hint=_AGAIN) from None


def load_membership(home: SiloHome) -> Membership:
    """Raises NotFoundError if the silo is not enrolled, IdentityError if its files do not belong together."""
    place = load_place(home)
    if place is None:
        raise NotFoundError(
            f"silo {home.name} has not joined a federation yet",
            hint=f"Ask the server's administrator for an invite: fedplat silo invite {home.name}",
        )
    key, ca_pem = load_key(home.key), read_private(home.ca_certificate).decode("utf-8", "replace")
    whole = _same(fingerprint(key.public_key()), place.key_fingerprint)
    if not whole or not _same(ca_fingerprint(ca_pem), place.ca_fingerprint):
        raise IdentityError(f"the enrolment of silo {home.name} was interrupted", hint=_AGAIN)
    return Membership(home.name, place, ca_pem, key)


def save_membership(home: SiloHome, membership: Membership) -> None:
    """All on disk when this returns; a crash on the way is noticed by `load_membership`."""
    save_key(membership.key, home.key)
    write_atomic(home.ca_certificate, membership.ca_pem.encode())
    write_atomic(place_file(home), membership.place.model_dump_json().encode())


def forget_membership(home: SiloHome) -> None:
    """Removes key, CA and place; the silo needs a new invite then."""
    for path in (place_file(home), home.key, home.ca_certificate):
        remove(path)


def _same(found: str, expected: str) -> bool:
    return hmac.compare_digest(found.encode(), expected.encode())
