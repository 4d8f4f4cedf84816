"""Who is asking. Set by the guard for each authenticated request; None is the server itself."""

from __future__ import annotations

from contextvars import ContextVar

caller_node_id: ContextVar[int | None] = ContextVar("caller_node_id", default=None)


class NotYours(Exception):
    """An authenticated silo asks for what belongs to someone else. Not a ValueError: Flower's handlers catch those."""


def require_self(node_id: int, what: str) -> None:
    """NotYours if an authenticated silo asks for what belongs to another node."""
    caller = caller_node_id.get()
    if caller is not None and caller != node_id:
        raise NotYours(f"{what} belongs to another silo")
