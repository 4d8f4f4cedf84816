"""Flower's Fleet API from the silo's side: messages in, replies out. The only file that knows Flower's internals."""

from __future__ import annotations

import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedplat.errors import ConflictError, ConnectionLostError, WireError
from fedplat.wire.codec import RECORD
from fedplat_silo.console import printable
from fedplat_silo.transport import Signer, connection_errors

TIMEOUT_S = 120.0  # the server may need a while to take in a large object
_PULL_AGAIN_S = 0.2
_NOT_NOW = frozenset({401, 408, 425, 429})


@dataclass(frozen=True)
class Delivery:
    """A message that waits at the server to be opened."""

    head: Message
    tree: ObjectTree

    @property
    def id(self) -> str:
        return self.head.metadata.message_id


class Fleet:
    """One silo's connection. Every call raises ConnectionLostError (try again), ConflictError (the server does not
    want it), or WireError (it makes no sense)."""

    def __init__(self, address: str, tls: ssl.SSLContext, node_id: int, signer: Signer) -> None:
        self._address = address
        self._node = Node(node_id=node_id)
        self._client = FleetHttpClient(
            f"https://{address}", interceptors=[_Signing(signer)], verify=tls, timeout=TIMEOUT_S
        )
        # The server keeps one upload a silo: a second would end the first.
        self._pushing = threading.Lock()

    def pull(self) -> Delivery | None:
        """The next message, still closed."""
        with _errors(self._address):
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return None
            return Delivery(message_from_proto(response.messages_list[0]), response.message_object_trees[0])

    def open(self, delivery: Delivery) -> Message:
        """The message with its content: of its chain of objects only the last, the record, travels.

        Nothing is confirmed: the server keeps a message until it has the answer.
        """
        leaf = next(iterate_object_tree(delivery.tree)).object_id  # children come before their parents
        if leaf == delivery.id:
            raise WireError("a message of the server has no content")
        with _errors(self._address):
            content = self._pull_object(delivery.head.metadata.run_id, leaf)
            if get_object_id(content) != leaf:
                raise WireError("the content of a message was damaged on its way")
            return make_message(delivery.head.metadata, RecordDict({RECORD: ConfigRecord.inflate(content)}))

    def push(self, reply: Message) -> None:
        """Sends a reply: its head, then the record with its content, unless the server has it."""
        with self._pushing, _errors(self._address), no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            response = self._client.PushMessages(request)
            leaf = next(iter(objects))  # children come before their parents
            if leaf in response.objects_to_push:
                self._push_object(reply.metadata.run_id, response.session_id, leaf, objects[leaf].deflate())

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _pull_object(self, run_id: int, object_id: str) -> bytes:
        request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
        response: PullObjectResponse = self._client.PullObject(request)
        if response.object_found and not response.object_available:
            time.sleep(_PULL_AGAIN_S)
            raise ConnectionLostError("an object of a message is not at the server yet")
        if not response.object_found:
            raise ConflictError("the server has withdrawn a message")
        return response.object_content

    def _push_object(self, run_id: int, session_id: str, object_id: str, content: bytes) -> None:
        response = self._client.PushObject(
            PushObjectRequest(
                node=self._node,
                run_id=run_id,
                object_id=object_id,
                object_content=content,
                session_id=session_id,
            )
        )
        if not response.stored:
            raise ConflictError("the server has not stored a part of the reply")


class _Signing:
    """Both signatures of a request: Flower's, over the time, and ours, over everything."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._key: ec.EllipticCurvePrivateKey = signer.key
        self._public = b64encode(public_key_to_bytes(signer.key.public_key())).decode("ascii")

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        request = context.request
        time_text = datetime.fromtimestamp(self._signer.clock.now_s(), UTC).isoformat()
        target = request.url.raw_path.decode("ascii")
        headers = self._signer.headers(request.method, target, request.content)
        headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._public
        headers[TIMESTAMP_HEADER] = time_text
        headers[FLEET_HTTP_SIGNATURE_HEADER] = b64encode(sign_message(self._key, time_text.encode())).decode()
        request.headers.update(headers)
        begun_s = time.monotonic()
        response = call_next(context)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._signer.clock.learn(response.headers.get("date"), time.monotonic() - begun_s)
        return response


@contextmanager
def _errors(address: str) -> Iterator[None]:
    with connection_errors(address):
        try:
            yield
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            words = f"the server at {address} answers {status}: {printable(error.response.text)}"
            if status in _NOT_NOW or status >= httpx.codes.INTERNAL_SERVER_ERROR:
                raise ConnectionLostError(words) from error
            raise ConflictError(words) from error
        except (ValueError, KeyError, TypeError) as error:
            raise WireError(f"the server at {address} answers what Flower does not understand: {error}") from error
