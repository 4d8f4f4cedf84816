"""HTTP requests that a silo signs: who, what, how long, which body, when, and only once."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.errors import IdentityError, WireError
from fedplat.identity.signing import MAX_SIGNATURE_BYTES, Label, sign, verify
from fedplat.names import check_silo_name

WINDOW_S = 60.0

SILO_HEADER = "x-fedplat-silo"
TIME_HEADER = "x-fedplat-time-ms"
NONCE_HEADER = "x-fedplat-nonce"
SIZE_HEADER = "x-fedplat-body-size"
SHA256_HEADER = "x-fedplat-body-sha256"
SIGNATURE_HEADER = "x-fedplat-signature"

_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")
_NONCE = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(rf"(?:[0-9a-f]{{2}}){{8,{MAX_SIGNATURE_BYTES}}}")


class ClockSkewError(IdentityError):
    """The silo's clock differs from the server's by more than the window; `offset_s` > 0: it is ahead."""

    def __init__(self, silo: str, offset_s: float) -> None:
        self.offset_s = offset_s
        where = "ahead of" if offset_s > 0 else "behind"
        super().__init__(
            f"the clock of silo {silo} is {abs(offset_s):.1f} s {where} the server's",
            hint=f"Set the clock (timedatectl set-ntp true); {WINDOW_S:.0f} s are allowed.",
        )


@dataclass(frozen=True)
class SignedRequest:
    """What the headers claim. Nothing of it is to be believed before `verify_request`."""

    silo: str
    time_ms: int
    nonce: str
    body_size_bytes: int
    body_sha256: str
    signature: bytes


class NonceCache:
    """Remembers the requests that it saw for as long as their time is acceptable. Thread-safe."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        # A request may come with a clock that is one window ahead and be replayed until it is one behind.
        self._keep_s = 2 * window_s
        self._seen: dict[tuple[str, str], float] = {}  # in order of `use`
        self._lock = threading.Lock()

    def use(self, silo: str, nonce: str, now_s: float) -> None:
        """Raises IdentityError if this silo's nonce was used already."""
        with self._lock:
            self._forget(now_s)
            if (silo, nonce) in self._seen:
                raise IdentityError(
                    f"a request of silo {silo} came twice", hint="Sign each attempt anew, with a new nonce."
                )
            self._seen[silo, nonce] = now_s

    def __len__(self) -> int:
        return len(self._seen)

    def _forget(self, now_s: float) -> None:
        while self._seen:
            oldest = next(iter(self._seen))
            if now_s - self._seen[oldest] <= self._keep_s:
                return
            del self._seen[oldest]


def new_nonce() -> str:
    """128 random bits in hex."""
    return secrets.token_hex(16)


def sign_request(
    key: ec.EllipticCurvePrivateKey,
    silo: str,
    method: str,
    path: str,
    body_sha256_hex: str,
    body_size_bytes: int,
    time_s: float,
    nonce: str,
) -> dict[str, str]:
    """The headers that sign one request; `path` is the request target as sent, with its query."""
    time_ms = round(time_s * 1000)
    fields = silo, method.upper(), path, body_sha256_hex, body_size_bytes, time_ms, nonce
    return {
        SILO_HEADER: silo,
        TIME_HEADER: str(time_ms),
        NONCE_HEADER: nonce,
        SIZE_HEADER: str(body_size_bytes),
        SHA256_HEADER: body_sha256_hex,
        SIGNATURE_HEADER: sign(key, Label.REQUEST, *fields).hex(),
    }


def parse_headers(headers: Mapping[str, str]) -> SignedRequest:
    """Reads the headers, whose names must be lower-case or the mapping case-blind. Raises WireError."""
    return SignedRequest(
        silo=check_silo_name(headers.get(SILO_HEADER, "")),
        time_ms=int(_header(headers, TIME_HEADER, _NUMBER)),
        nonce=_header(headers, NONCE_HEADER, _NONCE),
        body_size_bytes=int(_header(headers, SIZE_HEADER, _NUMBER)),
        body_sha256=_header(headers, SHA256_HEADER, _SHA256),
        signature=bytes.fromhex(_header(headers, SIGNATURE_HEADER, _SIGNATURE)),
    )


def verify_request(
    signed: SignedRequest,
    public: ec.EllipticCurvePublicKey,
    method: str,
    path: str,
    now_s: float,
    nonces: NonceCache,
) -> None:
    """Raises IdentityError (ClockSkewError) unless that silo signed this request, now, for the first time.

    `path` is the raw target as received, with its query. The body is the caller's to compare: it must
    have `body_size_bytes` bytes with the digest `body_sha256`.
    """
    # The signature comes first, so that only the silo itself learns the offset or fills the cache.
    fields = signed.silo, method.upper(), path, signed.body_sha256, signed.body_size_bytes, signed.time_ms
    verify(public, Label.REQUEST, signed.signature, *fields, signed.nonce)
    offset_s = signed.time_ms / 1000 - now_s
    if abs(offset_s) > WINDOW_S:
        raise ClockSkewError(signed.silo, offset_s)
    nonces.use(signed.silo, signed.nonce, now_s)


def _header(headers: Mapping[str, str], name: str, pattern: re.Pattern[str]) -> str:
    value = headers.get(name)
    if value is None:
        raise WireError(f"the request has no header {name}", hint="Every request must be signed by the silo.")
    if not pattern.fullmatch(value):
        raise WireError(f"the header {name} is malformed", hint="Are silo and server of the same version?")
    return value
