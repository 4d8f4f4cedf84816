"""The server as this silo reaches it: TLS that trusts one CA, signed requests, and errors in words."""

from __future__ import annotations

import hashlib
import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from fedplat.bufferfiles import DamagedPieceError
from fedplat.errors import ConflictError, ConnectionLostError, FedplatError, IdentityError, NotFoundError, WireError
from fedplat.identity import new_nonce, sign_request
from fedplat.wire.http import PREFIX, HttpBody, Problem
from fedplat_silo.console import printable

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 1_000_000
CLOCK_TOLERANCE_S = 2.5  # a Date header has whole seconds; Flower's own limit is 5 s
CLOCK_LATENCY_S = 1.0
_HOST_MISMATCH = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_EXPIRED = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


class CertificateError(IdentityError):
    """The server shows a certificate that this silo has no reason to trust."""


class Clock:
    """The server's time, as far as this machine knows it. Thread-safe."""

    def __init__(self, time_s: Callable[[], float] = time.time) -> None:
        self._time_s = time_s
        self._offset_s = 0.0
        self._warned = False

    def now_s(self) -> float:
        """Seconds since 1970 on the server's clock."""
        return self._time_s() + self._offset_s

    def learn(self, date: str | None, took_s: float = 0.0) -> None:
        """Takes over the time of an answer that came just now (its Date header), if it differs; says so once.

        A server dates an answer when the request comes: one that `took_s` long says nothing.
        """
        if date is None or took_s > CLOCK_LATENCY_S:
            return
        try:
            server_s = parsedate_to_datetime(date).timestamp() + 0.5
        except ValueError:
            return
        if abs(server_s - self.now_s()) < CLOCK_TOLERANCE_S:
            return
        self._offset_s = server_s - self._time_s()
        if not self._warned:
            self._warned = True
            where = "behind" if self._offset_s > 0 else "ahead of"
            log.warning(
                "this machine's clock is %.0f s %s the server's; requests are signed with the server's time. "
                "Set the clock: timedatectl set-ntp true",
                abs(self._offset_s),
                where,
            )


@dataclass(frozen=True)
class Signer:
    """Signs requests with the silo's key and the server's time."""

    silo: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    clock: Clock

    def headers(self, method: str, target: str, body: bytes) -> dict[str, str]:
        """The headers that sign one request, once."""
        return self.headers_for(method, target, hashlib.sha256(body).hexdigest(), len(body))

    def headers_for(self, method: str, target: str, sha256: str, size_bytes: int) -> dict[str, str]:
        """As `headers`, for a body whose SHA-256 is known."""
        return sign_request(self.key, self.silo, method, target, sha256, size_bytes, self.clock.now_s(), new_nonce())


def tls_for(ca_pem: str) -> ssl.SSLContext:
    """Trusts this CA and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    return context


def tls_for_nobody() -> ssl.SSLContext:
    """Believes any certificate; only for fetching the CA, whose fingerprint the invite has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Server:
    """Our own routes of one server. Thread-safe."""

    def __init__(self, address: str, tls: ssl.SSLContext, signer: Signer | None = None) -> None:
        self.address = address
        self._signer = signer
        self._client = httpx.Client(base_url=f"https://{address}", verify=tls, timeout=TIMEOUT_S)

    def get(self, name: str) -> bytes:
        """GET of one route. Raises as `post`."""
        return self._ask("GET", name, b"", TIMEOUT_S)

    def post(self, name: str, body: HttpBody | None = None, *, timeout_s: float = TIMEOUT_S) -> bytes:
        """POST of one route; returns the body of the answer.

        Raises ConnectionLostError (try again), CertificateError, IdentityError or ConflictError (the server knows
        this silo and says no), WireError and NotFoundError (it does not understand).
        """
        content = b"{}" if body is None else body.model_dump_json().encode()
        return self._ask("POST", name, content, timeout_s)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, method: str, name: str, content: bytes, timeout_s: float) -> bytes:
        response, answer = self._send(method, name, content, timeout_s)
        if response.status_code == httpx.codes.UNAUTHORIZED and self._signer is not None:
            # Perhaps only our clock was wrong, and now we know better.
            response, answer = self._send(method, name, content, timeout_s)
        if not response.is_success:
            raise problem_of(self.address, response.status_code, answer)
        return answer

    def _send(self, method: str, name: str, content: bytes, timeout_s: float) -> tuple[httpx.Response, bytes]:
        target = f"{PREFIX}/{name}"
        headers = {"content-type": "application/json"} if content else {}
        if self._signer is not None:
            headers |= self._signer.headers(method, target, content)
        request = self._client.build_request(method, target, content=content, headers=headers, timeout=timeout_s)
        begun_s = time.monotonic()
        with connection_errors(self.address):
            response = self._client.send(request, stream=True)
            try:
                answer = _read(response)
            finally:
                response.close()
        if self._signer is not None:
            self._signer.clock.learn(response.headers.get("date"), time.monotonic() - begun_s)
        return response, answer


def _read(response: httpx.Response) -> bytes:
    answer = bytearray()
    for chunk in response.iter_bytes():
        answer += chunk
        if len(answer) > MAX_ANSWER_BYTES:
            raise WireError("the server's answer is too long", hint="Is this the address of a fedplat server?")
    return bytes(answer)


@contextmanager
def connection_errors(address: str) -> Iterator[None]:
    """Errors of the connection, of httpx as of http.client, in our words. Nothing within may touch the disk."""
    try:
        yield
    except (httpx.TransportError, HTTPException, OSError) as error:
        refused = _certificate_error(error)
        if refused is not None:
            raise _untrusted(address, refused) from error
        raise ConnectionLostError(
            f"the server at {address} does not answer ({type(error).__name__}: {printable(str(error), 120)})",
            hint="Is the address right, the server up, and the way there open?",
        ) from error


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _untrusted(address: str, error: ssl.SSLCertVerificationError) -> CertificateError:
    if error.verify_code in _HOST_MISMATCH:
        return CertificateError(
            f"the server's certificate is not for the address {address}",
            hint="The server's administrator adds the name: fedplat server start --name HOST.",
        )
    if error.verify_code in _EXPIRED:
        return CertificateError(
            f"the certificate of the server at {address} is not valid now: {error.verify_message}",
            hint="Is this machine's clock right? Else the server must be started anew, which renews it.",
        )
    return CertificateError(
        f"the server at {address} shows a certificate that is not signed by the CA of this silo's federation",
        hint="Another server, somebody in between, or a server that was set up anew: then ask for a new invite.",
    )


_NOT_NOW = frozenset({408, 425, 429})
_KINDS: dict[str, type[FedplatError]] = {
    "unknown_silo": IdentityError,
    "revoked": IdentityError,
    "refused": IdentityError,
    "conflict": ConflictError,
    "not_found": NotFoundError,
    "clock_skew": ConnectionLostError,
    "replayed": ConnectionLostError,
    "unavailable": ConnectionLostError,
    "damaged": DamagedPieceError,
}


def problem_of(address: str, status: int, answer: bytes) -> FedplatError:
    """An answer that is not a success, as an error."""
    try:
        problem = Problem.model_validate_json(answer)
    except ValidationError:
        if status in _NOT_NOW or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return ConnectionLostError(f"the server at {address} is not well (status {status})")
        return WireError(
            f"the server at {address} answers {status}, and not as a fedplat server does",
            hint="Check the address, and proxies on the way.",
        )
    kind = _KINDS.get(problem.error, WireError)
    return kind(printable(problem.message), hint=printable(problem.hint))
