from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedplat.errors import ConflictError, FedplatError, IdentityError, WireError
from fedplat.identity import new_key
from fedplat_silo import backoff, caller
from fedplat_silo.backoff import Backoff
from fedplat_silo.caller import Caller, Presence
from fedplat_silo.transport import CertificateError, Clock, Server, Signer, tls_for
from tests.unit.silo_process.tls import Answer, TlsServer, tls_server

WAKE, HEALTH = "/v1/fedplat/wake", "/v1/fedplat/health"
GONE: Answer = (503, {"error": "unavailable", "message": "the database is away", "hint": ""})


@dataclass
class Phone:
    """A caller in a thread, and what it did."""

    server: TlsServer
    ca_pem: str = ""
    runs: tuple[str, ...] = ()
    num_pulls: int = 0
    ended: list[str] = field(default_factory=list)
    error: FedplatError | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        signer = Signer("hospital-a", new_key(), Clock())
        self.link = Server(self.server.address, tls_for(self.ca_pem or self.server.ca_pem), signer)
        presence = Presence("0" * 64, 3, lambda: ("m-1",), lambda: self.runs)
        self.caller = Caller(self.link, presence, self._pull, self.ended.append, lambda: None)
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Phone:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(10)
        self.link.close()

    def _pull(self) -> None:
        self.num_pulls += 1

    def _run(self) -> None:
        try:
            self.caller.run(self.stop)
        except FedplatError as error:
            self.error = error


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (0.02, 0.05))


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with tls_server(tmp_path / "s") as made:
        made.routes[HEALTH] = lambda *_: (200, {"status": "ok"})
        yield made


def script(*answers: Answer) -> Callable[[dict[str, str], bytes], Answer]:
    """One answer a call; then calls are held open."""
    left = list(answers)

    def answer(_headers: dict[str, str], _body: bytes) -> Answer:
        if left:
            return left.pop(0)
        time.sleep(0.5)
        return 200, {"messages": False, "runs": []}

    return answer


def reply(messages: bool = False, *runs: str) -> Answer:
    return 200, {"messages": messages, "runs": list(runs)}


def until(check: Callable[[], bool], timeout_s: float = 8) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_call_says_who_and_hears_of_messages_and_of_runs_that_are_over(server: TlsServer) -> None:
    said: list[dict[str, Any]] = []

    def wake(_headers: dict[str, str], body: bytes) -> Answer:
        said.append(json.loads(body))
        return answers(_headers, body)

    answers = script(reply(True, "r-1"))
    server.routes[WAKE] = wake
    with Phone(server, runs=("r-1", "r-2")) as phone:
        until(lambda: phone.num_pulls == 1)
        assert phone.ended == ["r-2"]
        assert phone.caller.connected
    assert (said[0]["boot"], said[0]["holding"], said[0]["runs"]) == (3, ["m-1"], ["r-1", "r-2"])


def test_a_server_that_is_away_and_back_is_said_once_each(server: TlsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fedplat_silo")
    away = threading.Event()
    server.routes[HEALTH] = lambda *_: GONE if away.is_set() else (200, {})
    server.routes[WAKE] = lambda *_: GONE if away.is_set() else reply(True)
    with Phone(server) as phone:
        until(lambda: phone.num_pulls > 2)
        away.set()
        until(lambda: server.seen[-8:] == [HEALTH] * 8)
        assert not phone.caller.connected
        away.clear()
        before = phone.num_pulls
        until(lambda: phone.num_pulls > before)
    lines = [r.getMessage() for r in caplog.records]
    name = f"the server at {server.address}"
    assert lines == [
        f"{name} answers",
        "the database is away; trying again until it is back",
        f"{name} is back",
    ]


@pytest.mark.parametrize(
    ("status", "word", "kind"),
    [(403, "revoked", IdentityError), (409, "conflict", ConflictError), (401, "unknown_silo", IdentityError)],
)
@pytest.mark.parametrize("num_good", [0, 2])
def test_what_a_person_has_to_mend_ends_it_at_any_time(
    server: TlsServer,
    status: int,
    word: str,
    kind: type[FedplatError],
    num_good: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caller, "CONFLICT_S", 0.0)
    problem: Answer = (status, {"error": word, "message": "no more", "hint": "call them"})
    server.routes[WAKE] = script(*[reply(True)] * num_good, problem, problem)
    with Phone(server) as phone:
        phone.thread.join(8)
        assert isinstance(phone.error, kind)
        assert (phone.error.message, phone.num_pulls) == ("no more", num_good)


CONFLICT: Answer = (409, {"error": "conflict", "message": "another process is connected", "hint": "stop it"})


def test_a_server_that_holds_the_dead_process_for_alive_is_waited_for(
    server: TlsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedplat_silo")
    server.routes[WAKE] = script(CONFLICT, CONFLICT, CONFLICT, reply(True), CONFLICT)
    with Phone(server) as phone:
        phone.thread.join(8)
        assert phone.num_pulls == 1
        assert isinstance(phone.error, ConflictError), "later on it is another process for sure"
    assert [r.getMessage() for r in caplog.records] == [
        f"the server at {server.address} answers",
        "another process is connected; if it is dead, the server will know within 75 s",
    ]


def test_a_conflict_that_stays_ends_it_with_the_servers_words(
    server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "CONFLICT_S", 0.3)
    server.routes[WAKE] = lambda *_: CONFLICT
    begun_s = time.monotonic()
    with Phone(server) as phone:
        phone.thread.join(8)
        assert isinstance(phone.error, ConflictError)
        assert (phone.error.message, phone.error.hint) == ("another process is connected", "stop it")
    assert time.monotonic() - begun_s >= 0.3
    assert server.seen.count(WAKE) > 2


def test_nonsense_ends_it_at_first_and_is_borne_later(server: TlsServer) -> None:
    server.routes[WAKE] = script((200, "not json"))
    with Phone(server) as phone:
        phone.thread.join(8)
        assert isinstance(phone.error, WireError)
    server.routes[WAKE] = script(reply(True), (200, "not json"), (404, "who?"), reply(True))
    with Phone(server) as phone:
        until(lambda: phone.num_pulls == 2)


def test_another_certificate_ends_it_at_first_and_is_borne_later(server: TlsServer, tmp_path: Path) -> None:
    with tls_server(tmp_path / "other") as other, Phone(other, ca_pem=server.ca_pem) as phone:
        phone.thread.join(8)
        assert isinstance(phone.error, CertificateError)
    server.routes[WAKE] = lambda *_: reply(True)
    with Phone(server) as phone:
        until(lambda: phone.num_pulls > 0)
        with tls_server(tmp_path / "other") as other:
            phone.link._client.base_url = f"https://{other.address}"
            until(lambda: not phone.caller.connected)
            phone.link._client.base_url = f"https://{server.address}"
            before = phone.num_pulls
            until(lambda: phone.num_pulls > before)


def test_a_server_that_lets_everybody_go_is_not_called_in_a_hurry(server: TlsServer) -> None:
    server.routes[WAKE] = lambda *_: reply()
    with Phone(server):
        time.sleep(1.3)
    assert server.seen.count(WAKE) <= 3


def test_waits_grow_to_half_a_minute() -> None:
    waits = Backoff(backoff.FIRST_S, backoff.LONGEST_S)
    times = [waits.next_s() for _ in range(2000)]
    assert 0.25 <= times[0] <= 0.5
    assert sum(times[:10]) < 25
    assert all(15 <= t <= 30 for t in times[16:])
    waits.reset()
    assert waits.next_s() <= 0.5
