from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedplat.errors import IdentityError, WireError
from fedplat.identity import (
    ClockSkewError,
    NonceCache,
    SignedRequest,
    new_key,
    new_nonce,
    parse_headers,
    sign_request,
    verify_request,
)

KEY = new_key()
NOW_S = 1_760_000_000.25
DIGEST = "ab" * 32


def headers(time_s: float = NOW_S, nonce: str = "0" * 32) -> dict[str, str]:
    return sign_request(KEY, "a", "PUT", "/v1/blob?x=1", DIGEST, 12, time_s, nonce)


def check(signed: SignedRequest, method: str = "PUT", path: str = "/v1/blob?x=1", now_s: float = NOW_S) -> None:
    verify_request(signed, KEY.public_key(), method, path, now_s, NonceCache())


def test_a_signed_request_is_accepted() -> None:
    signed = parse_headers(headers())
    assert (signed.silo, signed.body_sha256, signed.body_size_bytes) == ("a", DIGEST, 12)
    check(signed)
    check(signed, method="put")


@pytest.mark.parametrize(
    "change",
    [
        {"silo": "b"},
        {"time_ms": round(NOW_S * 1000) + 1},
        {"nonce": "1" * 32},
        {"body_size_bytes": 13},
        {"body_sha256": "cd" * 32},
        {"signature": b"\0" * 70},
    ],
)
def test_every_field_is_under_the_signature(change: dict[str, Any]) -> None:
    with pytest.raises(IdentityError, match="not valid"):
        check(replace(parse_headers(headers()), **change))


def test_method_and_path_are_under_the_signature() -> None:
    signed = parse_headers(headers())
    for method, path in [("GET", "/v1/blob?x=1"), ("PUT", "/v1/blob"), ("PUT", "/v1/blob?x=2")]:
        with pytest.raises(IdentityError, match="not valid"):
            check(signed, method, path)


def test_another_silos_key_is_refused() -> None:
    with pytest.raises(IdentityError, match="not valid"):
        verify_request(parse_headers(headers()), new_key().public_key(), "PUT", "/v1/blob?x=1", NOW_S, NonceCache())


@pytest.mark.parametrize(("offset_s", "word"), [(61.5, "ahead"), (-3600.0, "behind")])
def test_a_wrong_clock_is_told_by_how_much(offset_s: float, word: str) -> None:
    with pytest.raises(ClockSkewError, match=word) as refused:
        check(parse_headers(headers(NOW_S + offset_s)))
    assert refused.value.offset_s == pytest.approx(offset_s)


@pytest.mark.parametrize("offset_s", [-60.0, 0.0, 60.0])
def test_the_window_is_a_minute_each_way(offset_s: float) -> None:
    check(parse_headers(headers(NOW_S + offset_s)))


def test_a_stranger_does_not_learn_the_offset_nor_burn_a_nonce() -> None:
    nonces = NonceCache()
    with pytest.raises(IdentityError, match="not valid"):
        verify_request(parse_headers(headers(0.0)), new_key().public_key(), "PUT", "/", NOW_S, nonces)
    assert len(nonces) == 0


@given(st.floats(-60, 60), st.floats(0, 1e4))
def test_no_replay_is_ever_accepted(offset_s: float, later_s: float) -> None:
    nonces = NonceCache()
    signed = parse_headers(headers(NOW_S + offset_s))
    verify_request(signed, KEY.public_key(), "PUT", "/v1/blob?x=1", NOW_S, nonces)
    with pytest.raises(IdentityError):
        verify_request(signed, KEY.public_key(), "PUT", "/v1/blob?x=1", NOW_S + later_s, nonces)


def test_nonces_are_per_silo_and_forgotten() -> None:
    nonces = NonceCache(window_s=10)
    nonces.use("a", "n", 0.0)
    nonces.use("b", "n", 20.0)
    with pytest.raises(IdentityError, match="twice"):
        nonces.use("a", "n", 20.0)
    assert len(nonces) == 2
    nonces.use("a", "n", 20.1)
    nonces.use("c", "n", 100.0)
    assert len(nonces) == 1


class Slow(str):
    """Lets other threads run whenever it is looked up or stored."""

    __slots__ = ()

    def __hash__(self) -> int:
        time.sleep(0.001)
        return super().__hash__()


def test_of_many_threads_one_wins() -> None:
    nonces = NonceCache()

    def accepted(nonce: int) -> bool:
        try:
            nonces.use("a", Slow(nonce), 0.0)
        except IdentityError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(accepted, [0, 1, 2] * 8)) == 3


@pytest.mark.parametrize("name", sorted(headers()))
def test_a_missing_header_is_named(name: str) -> None:
    left = {key: value for key, value in headers().items() if key != name}
    with pytest.raises(WireError):
        parse_headers(left)


@given(st.sampled_from(sorted(headers())), st.text(max_size=40) | st.text("0123456789abcdef", max_size=300))
def test_the_parser_is_strict(name: str, value: str) -> None:
    try:
        signed = parse_headers({**headers(), name: value})
    except WireError:
        return
    again = {
        "x-fedplat-silo": signed.silo,
        "x-fedplat-time-ms": str(signed.time_ms),
        "x-fedplat-nonce": signed.nonce,
        "x-fedplat-body-size": str(signed.body_size_bytes),
        "x-fedplat-body-sha256": signed.body_sha256,
        "x-fedplat-signature": signed.signature.hex(),
    }
    assert again[name] == value  # nothing is accepted in two spellings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-fedplat-time-ms", "-1"),
        ("x-fedplat-time-ms", "1e9"),
        ("x-fedplat-time-ms", "\u0661"),
        ("x-fedplat-time-ms", "9" * 5000),
        ("x-fedplat-body-size", "012"),
        ("x-fedplat-nonce", "0" * 31),
        ("x-fedplat-nonce", "0" * 32 + "\n"),
        ("x-fedplat-body-sha256", DIGEST.upper()),
        ("x-fedplat-signature", "00" * 4000),
        ("x-fedplat-silo", "../a"),
    ],
)
def test_malformed_headers_are_refused(name: str, value: str) -> None:
    with pytest.raises(WireError):
        parse_headers({**headers(), name: value})


def test_nonces_differ() -> None:
    assert len({new_nonce() for _ in range(100)}) == 100
    check(parse_headers(headers(nonce=new_nonce())))
