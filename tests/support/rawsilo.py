"""A silo made by hand, to say what no honest silo says."""

from __future__ import annotations

import hashlib
import ssl
import time
from base64 import b64encode
from dataclasses import dataclass, field

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message as Proto

from fedplat.identity import Invite, Label, new_key, new_nonce, public_pem, secret_hash, sign, sign_request
from tests.support.federation import Federation

PROTOBUF = "application/protobuf"


@dataclass
class RawSilo:
    """Keys and a connection; every header can be wrong on purpose."""

    name: str
    http: httpx.Client
    node_id: int = 0
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    def __enter__(self) -> RawSilo:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def signed(
        self, path: str, body: bytes, *, method: str = "POST", at: float | None = None, silo: str | None = None
    ) -> dict[str, str]:
        """Headers of ours and Flower's for one request."""
        digest = hashlib.sha256(body).hexdigest()
        moment = time.time() if at is None else at
        ours = sign_request(self.key, silo or self.name, method, path, digest, len(body), moment, new_nonce())
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(moment))
        flower = self.key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        theirs = {
            "flwr-public-key": b64encode(public_pem(self.key).encode()).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": b64encode(flower).decode(),
        }
        return ours | flower_headers(theirs)

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        """A signed request, unless other headers are given."""
        kind = PROTOBUF if "/fleet/" in path else "application/json"
        signed = self.signed(path, body) if headers is None else headers
        return self.http.post(path, content=body, headers={"content-type": kind, **signed})

    def fleet(self, route: str, message: Proto) -> httpx.Response:
        """A well-signed protobuf request."""
        return self.post(f"/v1/fleet/{route}", message.SerializeToString(deterministic=True))


def flower_headers(values: dict[str, str]) -> dict[str, str]:
    """Flower's own names for its authentication headers."""
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: values["flwr-public-key"],
        TIMESTAMP_HEADER: values["flwr-timestamp"],
        FLEET_HTTP_SIGNATURE_HEADER: values["flwr-signature"],
    }


def connect(fed: Federation) -> httpx.Client:
    """A connection that trusts whatever certificate the server shows: these tests are about what comes after TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return httpx.Client(base_url=f"https://localhost:{fed.port}", verify=context, timeout=20)


def enrol(fed: Federation, name: str) -> RawSilo:
    """Redeem a fresh invite by hand."""
    invite = Invite.parse(fed.command("silo", "invite", name).strip())
    silo = RawSilo(name, connect(fed))
    reply = silo.http.post("/v1/fedplat/enrol", json=enrol_body(invite, silo.key, name))
    assert reply.status_code == 200, reply.text
    silo.node_id = int(reply.json()["node_id"])
    return silo


def enrol_body(invite: Invite, key: ec.EllipticCurvePrivateKey, name: str) -> dict[str, str]:
    """The JSON that redeems an invite."""
    pem = public_pem(key)
    proof = sign(key, Label.ENROL, invite.ca_fingerprint, name, secret_hash(invite.secret), pem)
    return {"silo": name, "secret": invite.secret.hex(), "public_key": pem, "proof": proof.hex()}
