"""The noise of one step, and the only way out for a sum of gradients.

Randomness is the operating system's, stretched by ChaCha20 (on a GPU by the generator of torch, Philox) under a key
that serves one step and is never kept. A float's low bits can betray what was added to what (Mironov 2012): so sum and
noise are added in float64, with about 2^30 values of the noise to each value that can come out, and rounded to a grid
of 2^-20 of the noise's standard deviation. Rounding comes after the noise and costs no privacy.
"""

from __future__ import annotations

import math
import secrets
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

Floats = npt.NDArray[np.float64]
_GRID_BITS = 20
_WORD_BYTES = 8
_BLOCK = 1 << 15  # normals that are made at a time, so that all passes over them stay in the cache
_ZEROS = bytes(_BLOCK * _WORD_BYTES)


def noised(sums: Tensor, deviation: float, divisor: float) -> Tensor:
    """(sums + noise of that standard deviation) / divisor, as a new vector of the same type."""
    grid = 2.0 ** (math.floor(math.log2(deviation)) - _GRID_BITS)
    if sums.device.type != "cpu":
        exact = _normals_on(sums.device, len(sums)).mul_(deviation / grid)
        return exact.add_(sums, alpha=1 / grid).round_().mul_(grid / divisor).to(sums.dtype)
    out = torch.empty_like(sums)
    given, wanted = sums.numpy(), out.numpy()
    keystream = Cipher(algorithms.ChaCha20(secrets.token_bytes(32), bytes(16)), mode=None).encryptor()
    words = np.empty(_BLOCK, dtype=np.int64)
    for start in range(0, len(sums), _BLOCK):
        part, released = given[start : start + _BLOCK], wanted[start : start + _BLOCK]
        fresh = words[: len(part) + len(part) % 2]
        keystream.update_into(_ZEROS[: fresh.nbytes], fresh.view(np.uint8).data)
        noise = box_muller(fresh, deviation / grid)[: len(part)]
        noise += part * (1 / grid)
        np.multiply(np.rint(noise, out=noise), grid / divisor, out=released, casting="same_kind")
    return out


def box_muller(words: npt.NDArray[np.int64], deviation: float) -> Floats:
    """Independent normals in float64 from as many random int64, an even number: Box and Muller 1958.

    The radius has 63 random bits, so the tails go on to 9.3 standard deviations (probability 1e-20).
    """
    half = len(words) // 2
    # Both keep their sign: near 0, where the tails come from, a float64 has more bits to offer than near 1.
    normals = np.multiply(words, 2.0**-63, dtype=np.float64)
    radius, tangent = normals[:half], normals[half:]
    np.abs(radius, out=radius)
    radius += 2.0**-64
    _apply("log", radius)
    radius *= -2 * deviation**2
    np.sqrt(radius, out=radius)
    # sine and cosine of an angle from the tangent t of its half: with w = 2 / (1 + t^2) they are t w and w - 1
    tangent *= math.pi / 2
    _apply("tan", tangent)
    scale = tangent * tangent
    scale += 1.0
    np.divide(2.0, scale, out=scale)
    tangent *= scale
    tangent *= radius
    scale -= 1.0
    radius *= scale
    return normals


def _apply(function: Literal["log", "tan"], values: Floats) -> None:
    """In place. With AVX-512 numpy is two to four times as fast as torch, without it several times slower."""
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        (np.log if function == "log" else np.tan)(values, out=values)
    else:
        shared = torch.from_numpy(values)
        (shared.log_ if function == "log" else shared.tan_)()


def _normals_on(device: torch.device, count: int) -> Tensor:
    """Independent standard normals in float64 from that device's generator, under a fresh seed."""
    generator = torch.Generator(device).manual_seed(secrets.randbits(63))
    return torch.randn(count, dtype=torch.float64, device=device, generator=generator)
