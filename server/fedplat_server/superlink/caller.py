"""Who is asking. Set by the guard for each authenticated request; None is the server itself."""

from __future__ import annotations

from contextvars import ContextVar

from fastapi import HTTPException

caller_node_id: ContextVar[int | None] = ContextVar("caller_node_id", default=None)


def require_self(node_id: int, what: str) -> None:
    """403 if an authenticated silo asks for what belongs to another node."""
    caller = caller_node_id.get()
    if caller is not None and caller != node_id:
        raise HTTPException(status_code=403, detail=f"{what} belongs to another silo")


def forbid(what: str) -> HTTPException:
    """403 in words."""
    return HTTPException(status_code=403, detail=what)
