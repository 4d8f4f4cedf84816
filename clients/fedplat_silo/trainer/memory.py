"""A vector in memory that two processes share: an anonymous file whose descriptor travels over a socket."""

from __future__ import annotations

import mmap
import os

import numpy as np

from fedplat.params import Vector

_ITEM_BYTES = 4


def create_memory(name: str) -> int:
    """A new, empty memfd."""
    return os.memfd_create(name, os.MFD_CLOEXEC)


def map_vector(fd: int, size: int) -> Vector:
    """`size` float32 of the memfd, which grows to hold them. Lives as long as the array does."""
    num_bytes = size * _ITEM_BYTES
    if os.fstat(fd).st_size < num_bytes:
        os.ftruncate(fd, num_bytes)
    return np.frombuffer(mmap.mmap(fd, num_bytes), dtype=np.float32)
