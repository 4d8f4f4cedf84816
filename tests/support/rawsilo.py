"""A silo made by hand, to say what no honest silo says."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from google.protobuf.message import Message as Proto

from fedplat.identity import Invite, Label, new_key, new_nonce, public_pem, secret_hash, sign, sign_request
from fedplat.wire.codec import RECORD, Body, Parcel, from_record, to_record
from fedplat.wire.messages import WireMessage
from tests.support.federation import Federation, wait_until

PROTOBUF = "application/protobuf"
_PART_BYTES = 1 << 20


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

    def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> httpx.Response:
        """A signed request of any method, unless other headers are given."""
        signed = self.signed(path, body, method=method) if headers is None else headers
        return self.http.request(method, path, content=body, headers=signed)

    def call(self) -> None:
        """A short wake: runs ask only who is connected."""
        body = json.dumps({"home": "a" * 64, "boot": 1, "fedplat": "test", "runs": ["gone"]})
        assert self.post("/v1/fedplat/wake", body.encode()).status_code == 200

    def question(self, kind: type[Body], beside: Iterable[RawSilo] = ()) -> tuple[Metadata, Parcel[Body]]:
        """The next message, which must be of that kind; waits for it. `beside`: who is connected too."""
        node = Node(node_id=self.node_id)
        found: list[fleet_pb2.PullMessagesResponse] = []

        def pulled() -> bool:
            for silo in (self, *beside):
                silo.call()
            reply = self.fleet("pull-messages", fleet_pb2.PullMessagesRequest(node=node))
            found.append(fleet_pb2.PullMessagesResponse.FromString(reply.content))
            return bool(found[-1].messages_list)

        wait_until(pulled, 20)
        head = message_from_proto(found[-1].messages_list[0]).metadata
        leaf = next(iterate_object_tree(found[-1].message_object_trees[0])).object_id
        ask = message_pb2.PullObjectRequest(node=node, run_id=head.run_id, object_id=leaf)
        content = message_pb2.PullObjectResponse.FromString(self.fleet("pull-object", ask).content).object_content
        return head, from_record(RecordDict({RECORD: ConfigRecord.inflate(content)}), kind)

    def answer(self, asked: Metadata, body: WireMessage, buffer: bytes = b"") -> None:
        """Reply to a question."""
        now, kind = time.time(), asked.message_type
        meta = Metadata(asked.run_id, "", self.node_id, asked.src_node_id, asked.message_id, "", now, 3600.0, kind)
        with no_object_id_recompute():
            reply = make_message(meta, to_record(body, buffer))
            meta.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            node = Node(node_id=self.node_id)
            push = fleet_pb2.PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            taken = fleet_pb2.PushMessagesResponse.FromString(self.fleet("push-messages", push).content)
            leaf = next(iter(objects))
            part = message_pb2.PushObjectRequest(
                node=node,
                run_id=asked.run_id,
                object_id=leaf,
                object_content=objects[leaf].deflate(),
                session_id=taken.session_id,
            )
        assert self.fleet("push-object", part).status_code == 200


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


def server_memory_mb(fed: Federation) -> float:
    """The most that the server's process has ever used."""
    status = Path(f"/proc/{fed.processes['server'].pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def stream(
    fed: Federation,
    target: str,
    headers: dict[str, str],
    length: int,
    data: bytes = b"",
    method: str = "PUT",
    *,
    hang_up: bool = False,
) -> tuple[bytes, int]:
    """Send a body of `length` bytes, `data` and then zeros, by hand; what the server answers (perhaps before the
    body's end), and how much it took. `hang_up`: without waiting for the answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    lines = [f"{method} {target} HTTP/1.1", "host: x", *(f"{k}: {v}" for k, v in headers.items())]
    raw = socket.create_connection(("localhost", fed.port), timeout=20)
    with context.wrap_socket(raw, server_hostname="localhost") as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        sent = 0
        with suppress(OSError):
            while sent < length:
                sock.settimeout(0.001 if sent else 1.0)
                with suppress(TimeoutError):
                    return sock.recv(4096), sent
                sock.settimeout(20)
                part = data[sent : sent + _PART_BYTES] or bytes(min(_PART_BYTES, length - sent))
                sock.sendall(part)
                sent += len(part)
            if not hang_up:
                return sock.recv(4096), sent
        return b"", sent


def status_of(answer: bytes) -> int:
    """Of an HTTP answer as it came."""
    return int(answer.split(b" ", 2)[1])
