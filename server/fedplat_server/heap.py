"""The C heap of the server's process."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # malloc.h of glibc
_ARENAS = 2


def share_heap() -> None:
    """Lets threads share two heaps. glibc gives each its own, which keeps what was freed: megabytes for every silo that
    transfers. For the start, before there are threads; without glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
