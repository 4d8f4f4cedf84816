"""Shamir's secret sharing (1979), byte by byte over GF(2^8) with the polynomial x^8 + x^4 + x^3 + x + 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedplat.errors import WireError

MAX_SHARES = 255
_Bytes = npt.NDArray[np.uint8]


def split(secret: bytes, threshold: int, num_shares: int, coefficients: bytes) -> list[bytes]:
    """The shares at x = 1 ... num_shares, each as long as the secret; any `threshold` of them give it back.

    `coefficients`: (threshold - 1) * len(secret) uniformly random bytes, used once.
    """
    if not 1 <= threshold <= num_shares <= MAX_SHARES:
        raise WireError(f"a secret cannot be shared {threshold} of {num_shares}")
    if len(coefficients) != (threshold - 1) * len(secret):
        raise WireError(f"{len(coefficients)} random bytes do not fit {threshold - 1} coefficients")
    rows = np.frombuffer(coefficients, np.uint8).reshape(threshold - 1, len(secret))
    constant = np.frombuffer(secret, np.uint8)
    return [_evaluate(constant, rows, x).tobytes() for x in range(1, num_shares + 1)]


def combine(shares: Sequence[tuple[int, bytes]], threshold: int) -> bytes:
    """The secret from (x, share) pairs, by Lagrange interpolation at 0; the first `threshold` pairs are used.

    Raises WireError for too few shares, x outside 1 ... 255 or twice, or different lengths.
    """
    places = [x for x, _ in shares]
    if len(shares) < threshold:
        raise WireError(f"{len(shares)} shares are too few, {threshold} are needed")
    if len(set(places)) != len(places) or not all(1 <= x <= MAX_SHARES for x in places):
        raise WireError("shares at places that are not 1 to 255, or twice at one")
    if len({len(share) for _, share in shares}) != 1:
        raise WireError("shares of different lengths")
    used = shares[:threshold]
    total = np.zeros(len(used[0][1]), np.uint8)
    for (_, share), weight in zip(used, _weights(places[:threshold]), strict=True):
        total ^= _PRODUCT[weight][np.frombuffer(share, np.uint8)]
    return total.tobytes()


def _evaluate(constant: _Bytes, rows: _Bytes, x: int) -> _Bytes:
    value: _Bytes = np.zeros_like(constant)
    for row in (*rows, constant):
        value = _PRODUCT[x][value] ^ row
    return value


def _weights(places: Sequence[int]) -> list[int]:
    """The Lagrange weight of each place at 0: the product of x_j / (x_j - x_i) over the others."""
    weights = []
    for x in places:
        above = below = 1
        for other in places:
            if other != x:
                above, below = int(_PRODUCT[above, other]), int(_PRODUCT[below, other ^ x])
        weights.append(int(_PRODUCT[above, _INVERSE[below]]))
    return weights


def _product_table() -> _Bytes:
    """All products: 256 x 256, by adding up the shifted (x^k times, reduced) multiples of one factor."""
    table = np.zeros((256, 256), np.uint8)
    numbers = np.arange(256)
    multiple = numbers
    for bit in range(8):
        table[numbers >> bit & 1 == 1] ^= multiple.astype(np.uint8)
        multiple = np.where(multiple & 0x80, multiple << 1 ^ 0x11B, multiple << 1)
    return table


_PRODUCT = _product_table()
_INVERSE = np.argmax(_PRODUCT == 1, axis=1)
