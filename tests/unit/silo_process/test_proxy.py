"""The way out of a hospital: an HTTP proxy that asks for a password and cuts what is silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedplat.errors import ConnectionLostError
from fedplat.identity import new_key
from fedplat_silo.backoff import Backoff
from fedplat_silo.caller import Caller, Presence
from fedplat_silo.line import proxy_for
from fedplat_silo.supernode import Fleet
from fedplat_silo.trainer.errors import Cancelled
from fedplat_silo.transport import Clock, Server, Signer, tls_for
from tests.unit.silo_process.roadside import Proxy, http_proxy, name_of, road_server
from tests.unit.silo_process.tls import Answer, TlsServer

SIGNER = Signer("hospital-a", new_key(), Clock())
IDLE_S = 1.2  # of the proxy, for 60 s
WAKE_S = 1.0  # for 50 s
PULL, WAKE, HEALTH = "/v1/fleet/pull-messages", "/v1/fedplat/wake", "/v1/fedplat/health"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (0.01, 0.02))


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with http_proxy("silo:s3cret@home", IDLE_S) as made:
        monkeypatch.setenv("HTTPS_PROXY", f"http://silo:s3cret%40home@localhost:{made.port}")
        yield made


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_buffers_go_through_the_proxy(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv(variable, f"http://silo:s3cret%40home@localhost:{proxy.port}")
    data = bytes(range(256)) * 20_000
    with road_server(tmp_path) as server:
        server.offers[name_of(data).digest] = data
        server.cuts = [3_000_000]
        path = server.road().fetch("r-1", name_of(data), tmp_path / "r-1", lambda _share: None)
        assert path.read_bytes() == data
    assert (proxy.num_tunnels, proxy.num_refused) == (2, 0)


def test_no_proxy_is_no_proxy(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")
    with road_server(tmp_path) as server:
        server.offers[name_of(b"data").digest] = b"data"
        server.road().fetch("r-1", name_of(b"data"), tmp_path / "r-1", lambda _share: None)
    assert proxy.num_tunnels == 0


def test_a_wrong_password_and_a_proxy_that_cannot_are_said(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with road_server(tmp_path) as server:
        for url, words in (
            (f"http://silo:wrong@localhost:{proxy.port}", "407 Proxy Authentication Required"),
            (f"socks5://localhost:{proxy.port}", "a proxy of the kind socks5://"),
        ):
            monkeypatch.setenv("HTTPS_PROXY", url)
            silo = server.road()
            threading.Timer(0.5, silo.close).start()
            with pytest.raises(Cancelled):
                silo.fetch("r-1", name_of(b"data"), tmp_path / "r-1", lambda _share: None)
            assert words in caplog.text
            caplog.clear()
    assert proxy.num_refused


def test_everything_else_goes_through_it_too(proxy: Proxy, server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.routes[HEALTH] = lambda *_: (200, "{}")
    server.routes[PULL] = lambda *_: (503, "it is only about the way here")
    silo = Server(server.address, tls_for(server.ca_pem), SIGNER)
    fleet = Fleet(server.address, tls_for(server.ca_pem), 1, SIGNER)
    silo.get("health")
    with pytest.raises(ConnectionLostError, match="answers 503: it is only about"):
        fleet.pull()
    assert (proxy.num_tunnels, server.seen) == (2, [HEALTH, PULL])
    time.sleep(IDLE_S + 0.3)
    assert proxy.num_idle == 2
    silo.get("health")  # over a new connection, and without an error
    silo.close()
    fleet.close()
    monkeypatch.setenv("HTTPS_PROXY", f"http://silo:wrong@localhost:{proxy.port}")
    silo = Server(server.address, tls_for(server.ca_pem), SIGNER)
    with pytest.raises(ConnectionLostError, match="407"):
        silo.get("health")
    silo.close()


def test_calls_end_before_the_proxy_cuts_them(proxy: Proxy, server: TlsServer) -> None:
    def wake(_headers: dict[str, str], _body: bytes) -> Answer:
        time.sleep(WAKE_S)
        return 200, {"messages": False, "runs": []}

    server.routes = {HEALTH: lambda *_: (200, "{}"), WAKE: wake}
    silo = Server(server.address, tls_for(server.ca_pem), SIGNER)
    presence = Presence("0" * 64, 1, lambda: (), lambda: ())
    caller = Caller(silo, presence, lambda: None, lambda _run: None, lambda: None)
    stop = threading.Event()
    thread = threading.Thread(target=lambda: caller.run(stop))
    thread.start()
    time.sleep(3.5 * WAKE_S)
    was_connected = caller.connected
    stop.set()
    thread.join(10)
    silo.close()
    assert was_connected
    assert server.seen.count(HEALTH) == 1, "it was never lost"
    assert server.seen.count(WAKE) >= 3
    assert (proxy.num_tunnels, proxy.num_idle) == (1, 0)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:3128"}, ("http", "p", 3128)),
        ({"HTTPS_PROXY": "p:3128"}, ("http", "p", 3128)),
        ({"ALL_PROXY": "http://all:1", "HTTPS_PROXY": "http://p:2"}, ("http", "p", 2)),
        ({"HTTP_PROXY": "http://p:2"}, None),
        ({"ALL_PROXY": "http://all:1", "NO_PROXY": "other.org, example.org"}, None),
        ({"ALL_PROXY": "http://all:1", "NO_PROXY": "ample.org"}, ("http", "all", 1)),
        ({"ALL_PROXY": "http://all:1", "NO_PROXY": "*"}, None),
    ],
)
def test_the_environment_is_understood_as_by_httpx(
    environment: dict[str, str], found: tuple[str, str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxy = proxy_for("fed.example.org", 8443)
    assert (proxy and (proxy.scheme, proxy.hostname, proxy.port)) == found
