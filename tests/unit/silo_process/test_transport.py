from __future__ import annotations

import logging
import re
import socket
import time

import pytest

from fedplat.errors import ConflictError, ConnectionLostError, IdentityError
from fedplat.identity import NonceCache, new_key, parse_headers, verify_request
from fedplat.wire.http import Progress
from fedplat_silo.transport import Clock, Server, Signer, tls_for
from tests.unit.silo_process.tls import Answer, TlsServer

KEY = new_key()
SKEWED: Answer = (401, {"error": "clock_skew", "message": "the clock of silo hospital-a is 90.0 s behind", "hint": ""})


def connect(server: TlsServer, clock: Clock) -> Server:
    return Server(server.address, tls_for(server.ca_pem), Signer("hospital-a", KEY, clock))


class Verifier:
    """The server's check of a signed request, on its own clock."""

    def __init__(self, server: TlsServer) -> None:
        self.server = server
        self.nonces = NonceCache()

    def __call__(self, headers: dict[str, str], _body: bytes) -> Answer:
        signed = parse_headers(headers)
        now_s = time.time() + self.server.clock_offset_s
        try:
            verify_request(signed, KEY.public_key(), "POST", "/v1/fedplat/progress", now_s, self.nonces)
        except IdentityError:
            return SKEWED
        return 204, ""


@pytest.mark.parametrize(
    ("offset_s", "words"), [(90.0, "(89|90|91) s behind"), (-3600.0, "(3599|3600|3601) s ahead of")]
)
def test_a_wrong_clock_is_corrected_and_said_once(
    server: TlsServer, offset_s: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.clock_offset_s = offset_s
    server.routes["/v1/fedplat/progress"] = Verifier(server)
    clock = Clock()
    silo = connect(server, clock)
    for _ in range(2):
        silo.post("progress", Progress(run="r"))
    silo.close()
    assert len(server.seen) == 3, "only the first request had to be repeated"
    assert abs(clock.now_s() - time.time() - offset_s) < 2
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert re.search(words, warnings[0])
    assert "timedatectl" in warnings[0]


def test_small_differences_and_late_answers_say_nothing(server: TlsServer) -> None:
    clock = Clock()
    server.routes["/v1/fedplat/progress"] = lambda _headers, _body: (204, "")
    silo = connect(server, clock)
    server.clock_offset_s = 1.0
    silo.post("progress", Progress(run="r"))
    server.clock_offset_s = -50.0  # as an answer that was dated when a long call began

    def late(_headers: dict[str, str], _body: bytes) -> Answer:
        time.sleep(1.1)
        return 204, ""

    server.routes["/v1/fedplat/wake"] = late
    silo.post("wake", Progress(run="r"))
    silo.close()
    assert abs(clock.now_s() - time.time()) < 0.1


def test_a_clock_that_cannot_be_corrected_is_no_endless_loop(server: TlsServer) -> None:
    server.routes["/v1/fedplat/progress"] = lambda _headers, _body: SKEWED
    silo = connect(server, Clock())
    with pytest.raises(ConnectionLostError, match="behind"):
        silo.post("progress", Progress(run="r"))
    silo.close()
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("status", "word", "kind"),
    [
        (403, "revoked", IdentityError),
        (401, "unknown_silo", IdentityError),
        (409, "conflict", ConflictError),
        (503, "unavailable", ConnectionLostError),
    ],
)
def test_problems_become_errors(server: TlsServer, status: int, word: str, kind: type[Exception]) -> None:
    server.routes["/v1/fedplat/wake"] = lambda *_: (status, {"error": word, "message": "so it is", "hint": "do that"})
    silo = connect(server, Clock())
    with pytest.raises(kind, match="so it is\n  do that"):
        silo.post("wake")
    silo.close()


def test_a_server_that_is_away(server: TlsServer) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"localhost:{nobody.getsockname()[1]}"
        silo = Server(address, tls_for(server.ca_pem))
        with pytest.raises(ConnectionLostError, match=f"the server at {address} does not answer"):
            silo.get("health")
        silo.close()
