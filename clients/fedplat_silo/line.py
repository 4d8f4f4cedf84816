"""One connection for large bodies: signed requests over TLS, through the environment's proxy if it names one.

By http.client: for bodies of many megabytes it takes far less CPU time than httpx, which everything small goes by.
"""

from __future__ import annotations

import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPResponse, HTTPSConnection
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from fedplat.errors import ConnectionLostError
from fedplat_silo.transport import MAX_ANSWER_BYTES, Signer, connection_errors, problem_of

CONNECT_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 60.0  # without a byte
CHUNK_BYTES = 1 << 18
_HTTP_PORT = 80


class Line:
    """Belongs to one thread; only `cut` may come from others."""

    def __init__(self, address: str, tls: ssl.SSLContext, signer: Signer) -> None:
        """Connects. Raises ConnectionLostError, CertificateError."""
        self._address = address
        self._signer = signer
        self._http = connection_to(address, tls)
        with connection_errors(address):
            self._http.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        sha256: str | None = None,
        on_sent: Callable[[int], None] = lambda _num_bytes: None,
    ) -> HTTPResponse:
        """The head of an answer that is a success. `sha256`: the body's, where it is known; `on_sent`: how much of
        the body is on its way. Raises as `Server.post`, and DamagedPieceError."""
        response = self._exchange(method, target, body, sha256, on_sent)
        if response.status == HTTPStatus.UNAUTHORIZED:
            # Perhaps only our clock was wrong, and now we know better.
            self.close()
            response = self._exchange(method, target, body, sha256, on_sent)
        if response.status != HTTPStatus.OK:
            raise problem_of(self._address, response.status, self.read(response))
        return response

    def read(self, response: HTTPResponse) -> bytes:
        """The body of a short answer."""
        with connection_errors(self._address):
            return response.read(MAX_ANSWER_BYTES)

    def read_into(self, response: HTTPResponse, buffer: memoryview) -> int:
        """Some of a long one; returns how many bytes. Raises ConnectionLostError, also where it ends too early."""
        with connection_errors(self._address):
            num_bytes = response.readinto(buffer)
        if not num_bytes:
            raise ConnectionLostError(f"the server at {self._address} has hung up in the middle of an answer")
        return num_bytes

    def cut(self) -> None:
        """Ends what another thread waits for; that gets ConnectionLostError."""
        connection = self._http.sock
        if connection is not None:
            with suppress(OSError):  # closed already
                # not SSLSocket's own, which takes the TLS away under the other thread
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def close(self) -> None:
        self._http.close()

    def _exchange(
        self, method: str, target: str, body: bytes, sha256: str | None, on_sent: Callable[[int], None]
    ) -> HTTPResponse:
        signer, size_bytes = self._signer, len(body)
        if sha256 is None:
            headers = signer.headers(method, target, body)
        else:
            headers = signer.headers_for(method, target, sha256, size_bytes)
        if body:
            headers |= {"content-length": str(size_bytes), "content-type": "application/octet-stream"}
        begun_s = time.monotonic()
        with connection_errors(self._address):
            if self._http.sock is None:
                self._http.connect()
            # A server that refuses does not wait for the whole body: its answer may be there when sending fails.
            with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                self._http.request(method, target, _chunks(body, on_sent) if body else None, headers)
            response = self._http.getresponse()
        signer.clock.learn(response.headers.get("date"), time.monotonic() - begun_s)
        return response


class _Connection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(IDLE_TIMEOUT_S)


def _chunks(body: bytes, on_sent: Callable[[int], None]) -> Iterator[memoryview]:
    rest = memoryview(body)
    while rest:
        yield rest[:CHUNK_BYTES]
        rest = rest[CHUNK_BYTES:]
        on_sent(len(body) - len(rest))


def connection_to(address: str, tls: ssl.SSLContext) -> HTTPSConnection:
    """Not connected yet; by the proxy that the environment names, if there is one. Raises ConnectionLostError."""
    server = urlsplit(f"//{address}")
    host, port = str(server.hostname), server.port
    proxy = proxy_for(host, port)
    if proxy is None:
        return _Connection(host, port, timeout=CONNECT_TIMEOUT_S, context=tls)
    if proxy.scheme != "http" or proxy.hostname is None:
        raise ConnectionLostError(
            f"large buffers do not go through a proxy of the kind {proxy.scheme}://",
            hint="Name an http:// proxy in HTTPS_PROXY, or the server in NO_PROXY.",
        )
    made = _Connection(proxy.hostname, proxy.port or _HTTP_PORT, timeout=CONNECT_TIMEOUT_S, context=tls)
    made.set_tunnel(host, port, authorization(proxy))
    return made


def proxy_for(host: str, port: int | None) -> SplitResult | None:
    """The proxy that HTTPS_PROXY, ALL_PROXY and NO_PROXY name for a server, as httpx understands them."""
    proxies = getproxies()
    url = proxies.get("https") or proxies.get("all")
    if not url or proxy_bypass(f"{host}:{port}"):
        return None
    return urlsplit(url if "://" in url else f"http://{url}")


def authorization(proxy: SplitResult) -> dict[str, str]:
    """The header for a proxy that asks for user and password."""
    if proxy.username is None:
        return {}
    credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(credentials.encode()).decode('ascii')}"}
