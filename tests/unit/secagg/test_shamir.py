from __future__ import annotations

import itertools
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplat.errors import WireError
from fedplat.secagg.shamir import combine, split

# An implementation of its own: multiplication by shift and add, the secret by solving the linear system.


def times(a: int, b: int) -> int:
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def inverse(a: int) -> int:
    return next(b for b in range(256) if times(a, b) == 1)


def power(x: int, exponent: int) -> int:
    result = 1
    for _ in range(exponent):
        result = times(result, x)
    return result


def solve(points: list[tuple[int, int]]) -> int:
    """The constant of the polynomial through the points, by Gaussian elimination of the Vandermonde system."""
    n = len(points)
    rows = [[power(x, e) for e in range(n)] + [y] for x, y in points]
    for column in range(n):
        pivot = next(r for r in range(column, n) if rows[r][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = inverse(rows[column][column])
        rows[column] = [times(v, scale) for v in rows[column]]
        for r in range(n):
            if r != column:
                factor = rows[r][column]
                rows[r] = [v ^ times(factor, w) for v, w in zip(rows[r], rows[column], strict=True)]
    return rows[0][n]


@settings(max_examples=30)
@given(st.data())
def test_against_another_implementation(data: st.DataObject) -> None:
    num_shares = data.draw(st.integers(1, 20))
    threshold = data.draw(st.integers(1, min(num_shares, 6)))
    secret = data.draw(st.binary(min_size=1, max_size=4))
    coefficients = data.draw(st.binary(min_size=(threshold - 1) * len(secret), max_size=(threshold - 1) * len(secret)))
    shares = split(secret, threshold, num_shares, coefficients)
    for x, share in enumerate(shares, start=1):
        assert share == bytes(value_at(x, i, secret, coefficients, threshold) for i in range(len(secret)))
    places = data.draw(st.permutations(range(1, num_shares + 1)))[:threshold]
    chosen = [(x, shares[x - 1]) for x in places]
    assert combine(chosen, threshold) == secret
    assert bytes(solve([(x, share[i]) for x, share in chosen]) for i in range(len(secret))) == secret


def value_at(x: int, i: int, secret: bytes, coefficients: bytes, threshold: int) -> int:
    """Byte i of the share at x; the highest power's coefficients come first."""
    value = secret[i]
    for row in range(threshold - 1):
        value ^= times(coefficients[row * len(secret) + i], power(x, threshold - 1 - row))
    return value


def test_any_threshold_of_the_shares_gives_the_secret_and_fewer_fit_every_secret() -> None:
    secret = b"\x2a"
    shares = list(enumerate(split(secret, 3, 5, secrets.token_bytes(2)), start=1))
    for some in itertools.combinations(shares, 3):
        assert combine(some, 3) == secret
    two = shares[:2]
    fits = {combine([*two, (5, bytes([guess]))], 3) for guess in range(256)}
    assert len(fits) == 256


def test_sixty_four_shares() -> None:
    secret = secrets.token_bytes(64 * 32)
    shares = list(enumerate(split(secret, 33, 64, secrets.token_bytes(32 * len(secret))), start=1))
    assert combine(shares[31:], 33) == secret


@pytest.mark.parametrize(
    "shares",
    [
        [(0, b"ab"), (1, b"ab")],
        [(256, b"ab"), (1, b"ab")],
        [(1, b"ab"), (1, b"ab")],
        [(1, b"ab"), (2, b"abc")],
        [(1, b"ab")],
        [],
    ],
)
def test_shares_that_cannot_be_combined(shares: list[tuple[int, bytes]]) -> None:
    with pytest.raises(WireError, match="shares"):
        combine(shares, 2)


@pytest.mark.parametrize(("threshold", "num_shares", "num_random"), [(0, 3, 0), (4, 3, 6), (2, 256, 2), (2, 3, 1)])
def test_secrets_that_cannot_be_split(threshold: int, num_shares: int, num_random: int) -> None:
    with pytest.raises(WireError):
        split(b"ab", threshold, num_shares, bytes(num_random))
