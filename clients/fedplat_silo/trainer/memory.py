"""Vectors in files, and in memory that two processes share (an anonymous file: its descriptor goes over a socket)."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedplat.params import Vector
from fedplat.spec.model import Precision
from fedplat.wire.buffers import to_vector

Weights = Vector | npt.NDArray[np.uint16]
"""Flat weights as they came: float32, or the bits of bfloat16."""

_ITEM_BYTES = 4
_BLOCK = 1 << 20  # elements


def create_memory(name: str) -> int:
    """A new, empty memfd."""
    return os.memfd_create(name, os.MFD_CLOEXEC)


def map_vector(fd: int, size: int) -> Vector:
    """`size` float32 of the memfd, which grows to hold them. Lives as long as the array does."""
    num_bytes = size * _ITEM_BYTES
    if os.fstat(fd).st_size < num_bytes:
        os.ftruncate(fd, num_bytes)
    return np.frombuffer(mmap.mmap(fd, num_bytes), dtype=np.float32)


def map_weights(path: Path, precision: Precision) -> Weights:
    """The weights in a file, read-only and not read yet. They outlive the file's name."""
    if precision is Precision.FP32:
        return np.memmap(path, dtype=np.dtype("<f4"), mode="r")
    return np.memmap(path, dtype=np.dtype("<u2"), mode="r")


def write_weights(out: Vector, weights: Weights) -> None:
    """Copies, and widens bfloat16 block by block."""
    if weights.dtype == np.float32:
        out[:] = weights
        return
    for start in range(0, weights.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        out[block] = to_vector(weights[block].data, Precision.BF16)
