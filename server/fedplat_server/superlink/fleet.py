"""Flower's Fleet API as an ASGI app: five routes of it, behind our guard. Nothing else of Flower is reachable."""

from __future__ import annotations

import logging
from types import SimpleNamespace

from fastapi import FastAPI
from flwr.supercore.error import http_error_translator
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedplat_server.superlink.link import Link

FLEET_ROUTES = frozenset(
    f"/v1/fleet/{name}" for name in ("pull-messages", "pull-object", "push-messages", "push-object")
)
_log = logging.getLogger(__name__)


def fleet_app(link: Link) -> ASGIApp:
    """The routes that a silo needs; registering, activating and looking at runs are ours to do."""
    app = FastAPI(
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )
    app.include_router(router)
    app.state.linkstate_factory = SimpleNamespace(state=lambda: link.state)
    app.state.enable_supernode_auth = True
    return _NoServerErrors(app)


class _NoServerErrors:
    """Flower's handlers answer 500 to a well-signed message that makes no sense. The sender is at fault: 400."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_translated(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 500:
                _log.warning("%s: a silo's request made no sense to Flower", scope["path"])
                message = {**message, "status": 400}
            await send(message)

        await self._app(scope, receive, send_translated)
