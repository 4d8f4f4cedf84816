"""The way to the server, broken in one place at a time: real sockets, real TLS."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedplat import __version__
from fedplat.doctor import Level
from fedplat.home import ServerHome
from fedplat.identity import Certified, ensure_authority, show_fingerprint
from fedplat_silo.membership import load_membership
from tests.support.federation import free_port
from tests.unit.doctor.scene import enrolled, expect, line, silo, stranger_ca, tls_files
from tests.unit.silo_process.roadside import http_proxy
from tests.unit.silo_process.tls import TlsServer, tls_server

HEALTH, MEMBERSHIP = "/v1/fedplat/health", "/v1/fedplat/membership"
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.lower, PROXIES)):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def a_server(
    folder: Path,
    *,
    authority: Certified | None = None,
    issued: datetime | None = None,
    name: str = "localhost",
    ahead_s: float = 0.0,
    version: str = __version__,
) -> Iterator[TlsServer]:
    """Answers as a fedplat server does, with whatever is wrong about it."""
    home = ServerHome(folder)
    home.create()
    authority = authority or ensure_authority(home)
    files = tls_files(folder, authority, issued or datetime.now(UTC), name)
    with tls_server(folder, files=files) as made:
        made.ca_pem = authority.certificate_pem
        made.routes[HEALTH] = lambda *_: (200, {"status": "ok", "fedplat": version, "time": time.time() + ahead_s})
        made.routes[MEMBERSHIP] = lambda headers, _: (200, {"silo": headers["x-fedplat-silo"], "connected": True})
        yield made


def test_all_is_well(tmp_path: Path) -> None:
    with a_server(tmp_path / "s") as server:
        found = silo(enrolled(tmp_path, server.address, server.ca_pem))
        for check in ("proxy", "dns", "port", "tls", "certificate", "server", "clock", "membership"):
            expect(line(found, check), Level.OK)
        assert "connected" in line(found, "membership").found


def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    found = silo(enrolled(tmp_path, "fed.invalid:8443"))
    expect(line(found, "dns"), Level.FAILED, "fed.invalid is not known here", "/etc/hosts")
    expect(line(found, "tls"), Level.SKIPPED, "'dns' has failed")


def test_a_proxy_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://localhost:{port}")
    found = silo(enrolled(tmp_path))
    expect(line(found, "proxy"), Level.FAILED, f"the proxy localhost:{port} does not answer", "NO_PROXY=localhost")


def test_a_proxy_of_a_kind_that_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://localhost:1")
    expect(line(silo(enrolled(tmp_path)), "proxy"), Level.FAILED, "of the kind socks5://")


def test_a_proxy_that_wants_another_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_server(tmp_path / "s") as server, http_proxy("silo:right") as proxy:
        found = silo(enrolled(tmp_path, server.address, server.ca_pem))
        monkeypatch.setenv("HTTPS_PROXY", f"http://silo:right@localhost:{proxy.port}")
        expect(line(found, "membership"), Level.OK)
        monkeypatch.setenv("HTTPS_PROXY", f"http://silo:wrong@localhost:{proxy.port}")
        found = silo(enrolled(tmp_path, server.address, server.ca_pem))
        expect(line(found, "port"), Level.FAILED, "through the proxy", "407")
        assert "wrong" not in str([line(found, check) for check in ("proxy", "port")])


def test_a_port_that_nobody_listens_on(tmp_path: Path) -> None:
    port = free_port()
    found = silo(enrolled(tmp_path, f"localhost:{port}"))
    expect(line(found, "port"), Level.FAILED, f"localhost:{port} cannot be reached: Connection refused", "firewall")


def test_something_that_speaks_no_tls(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as plain:

        def answer() -> None:
            for _ in range(2):
                client = plain.accept()[0]
                client.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
                client.close()

        threading.Thread(target=answer, daemon=True).start()
        found = silo(enrolled(tmp_path, f"localhost:{plain.getsockname()[1]}"))
        expect(line(found, "tls"), Level.FAILED, "does not answer", "Is the address right")


def test_a_proxy_that_opens_tls_is_named(tmp_path: Path) -> None:
    begin = datetime.now(UTC) - timedelta(days=1)
    with a_server(tmp_path / "s", authority=stranger_ca("Zscaler Root CA", begin)) as interceptor:
        found = silo(enrolled(tmp_path, interceptor.address))
        expect(line(found, "tls"), Level.FAILED, "opens TLS", "CN=Zscaler Root CA", f"exempt {interceptor.address}")
        assert interceptor.seen == [], "it is told nothing"


def test_a_server_that_was_set_up_anew(tmp_path: Path) -> None:
    with a_server(tmp_path / "s") as other:
        found = silo(enrolled(tmp_path, other.address))
        expect(line(found, "tls"), Level.FAILED, "another federation", "CN=fedplat CA ", "new invite")


def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    with a_server(tmp_path / "s", name="elsewhere") as server:
        found = silo(enrolled(tmp_path, server.address, server.ca_pem))
        expect(line(found, "tls"), Level.FAILED, "is not for the address", "--name HOST")


def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    begin = datetime.now(UTC) - timedelta(days=900)
    with a_server(tmp_path / "s", authority=stranger_ca("fedplat CA old", begin), issued=begin) as server:
        found = silo(enrolled(tmp_path, server.address, server.ca_pem))
        expect(line(found, "tls"), Level.FAILED, "is not valid now", "clock")


def test_a_certificate_that_ends_soon(tmp_path: Path) -> None:
    begin = datetime.now(UTC) - timedelta(days=815)
    with a_server(tmp_path / "s", authority=stranger_ca("fedplat CA old", begin), issued=begin) as server:
        found = silo(enrolled(tmp_path, server.address, server.ca_pem))
        expect(line(found, "certificate"), Level.WARNING, "good until", "Start the server anew")


@pytest.mark.parametrize(
    ("ahead_s", "level", "words"),
    [
        (-1.0, Level.OK, "ahead of the server's; 60 s are allowed"),
        (-30.0, Level.WARNING, "s ahead of the server's; from 2.5 s on the silo corrects"),
        (300.0, Level.FAILED, "s behind the server's; the server allows 60 s"),
    ],
)
def test_a_clock_that_differs(tmp_path: Path, ahead_s: float, level: Level, words: str) -> None:
    with a_server(tmp_path / "s", ahead_s=ahead_s) as server:
        expect(line(silo(enrolled(tmp_path, server.address, server.ca_pem)), "clock"), level, words)


def test_another_version_and_no_fedplat_at_all(tmp_path: Path) -> None:
    with a_server(tmp_path / "s", version="0.0.7") as server:
        home = enrolled(tmp_path, server.address, server.ca_pem)
        expect(line(silo(home), "server"), Level.FAILED, "the server runs fedplat 0.0.7", "same version")
        server.routes[HEALTH] = lambda *_: (200, {"hello": "world"})
        expect(line(silo(home), "server"), Level.FAILED, "is no fedplat server")
        server.routes[HEALTH] = lambda *_: (503, "maintenance")
        expect(line(silo(home), "server"), Level.FAILED, "is not well (status 503)")


def test_the_key_is_named_by_its_fingerprint(tmp_path: Path) -> None:
    home = enrolled(tmp_path)
    shown = show_fingerprint(load_membership(home).place.key_fingerprint)
    assert shown.startswith(line(silo(home), "enrolment").found.partition("key ")[2].removesuffix(" ..."))
