"""A silo that is enrolled, without a server."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.home import ServerHome, SiloHome
from fedplat.identity import ca_fingerprint, ensure_authority, fingerprint, new_key, public_pem
from fedplat_silo.membership import Membership, Place, save_membership


def enrol(home: SiloHome) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePrivateKey]:
    """Puts a membership into the home; returns the silo's key and the server's."""
    key, server, pem = new_key(), new_key(), _authority()
    place = Place(
        address="localhost:1",
        node_id=1,
        server_key=public_pem(server),
        ca_fingerprint=ca_fingerprint(pem),
        key_fingerprint=fingerprint(key.public_key()),
        invite="0" * 64,
    )
    save_membership(home, Membership(home.name, place, pem, key))
    return key, server


@cache
def _authority() -> str:
    with tempfile.TemporaryDirectory(prefix="fp-") as folder:
        server = ServerHome(Path(folder))
        server.create()
        return ensure_authority(server).certificate_pem
