"""Flower's Fleet API: four routes of it, the same messages and the same handlers, behind our guard.

Flower's own FastAPI app with its layers of middleware is not used: the guard has authenticated the request (more
strictly than Flower does), so what is left is to parse, to check the node's id, and to answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.supercore.error import FlowerError
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError, Message
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from fedplat.wire.http import Problem
from fedplat_server.superlink.caller import NotYours, require_self
from fedplat_server.superlink.link import Link
from fedplat_server.superlink.state import GuardedLinkState

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Route:
    request: type[Message]
    handler: Callable[..., Message]


_ROUTES = {
    "/v1/fleet/pull-messages": _Route(
        PullMessagesRequest, lambda request, state: fleet_handlers.pull_messages(request, state, state.object_store)
    ),
    "/v1/fleet/push-messages": _Route(PushMessagesRequest, fleet_handlers.push_messages),
    "/v1/fleet/pull-object": _Route(PullObjectRequest, fleet_handlers.pull_object),
    "/v1/fleet/push-object": _Route(PushObjectRequest, fleet_handlers.push_object),
}
FLEET_ROUTES = frozenset(_ROUTES)


@dataclass(frozen=True)
class FleetApp:
    """ASGI. Whatever a silo sends, signed or not: an answer below 500."""

    link: Link

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        route = _ROUTES.get(scope["path"])
        if route is None or request.method != "POST":
            response: Response = _problem(404, "not_found", "there is nothing at this address")
        else:
            response = await run_in_threadpool(_answer, route, await request.body(), self.link.state)
        await response(scope, receive, send)


def _answer(route: _Route, body: bytes, state: GuardedLinkState) -> Response:
    request = route.request()
    try:
        request.ParseFromString(body)
        require_self(request.node.node_id, "this node id")  # type: ignore[attr-defined]
        reply = route.handler(request, state)
    except DecodeError:
        return _problem(400, "malformed", "the body is not the protobuf message of this route")
    except NotYours as error:
        return _problem(403, "forbidden", str(error))
    except (FlowerError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError) as error:
        # Flower's handlers trip over a well-signed message that makes no sense: its sender is at fault.
        _log.info("%s: %s", route.request.__name__, type(error).__name__)
        return _problem(409, "conflict", "the server has no use for this message (its run or question may be over)")
    return Response(reply.SerializeToString(), media_type=PROTOBUF_MEDIA_TYPE)


def _problem(status: int, error: str, message: str) -> Response:
    body = Problem.model_validate({"error": error, "message": message})
    return JSONResponse(body.model_dump(), status_code=status)
