"""Leaving a federation: first the server's side, then the key."""

from __future__ import annotations

import logging

from fedplat.errors import IdentityError
from fedplat.home import SiloHome
from fedplat_silo.membership import forget_membership, load_membership
from fedplat_silo.transport import CertificateError, Clock, Server, Signer, tls_for

log = logging.getLogger(__name__)


def leave_federation(home: SiloHome) -> None:
    """The server forgets the silo, then the silo its key. Raises HomeLockedError while the silo's process runs,
    ConnectionLostError if the server is away; then nothing has changed."""
    with home.lock():
        membership = load_membership(home)
        signer = Signer(home.name, membership.key, Clock())
        server = Server(membership.place.address, tls_for(membership.ca_pem), signer)
        try:
            server.post("leave")
        except CertificateError:
            raise
        except IdentityError as error:
            log.info("the server knows this silo no more: %s", error.message)
        finally:
            server.close()
        forget_membership(home)
