"""Whoever knocks at the one port, with whatever: no 500, no traceback, no change of state, no memory for strangers."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.node_pb2 import Node
from google.protobuf.message import Message as Proto

from fedplat.identity import Invite, new_key, sign_request
from fedplat_server.registry import GRACE_S
from tests.support.federation import CommandFailed, Federation, add_constant, federation, wait_until
from tests.support.rawsilo import RawSilo, connect, enrol, enrol_body, server_memory_mb

FLEET = ("pull-messages", "pull-object", "push-messages", "push-object")
OURS = ("wake", "progress", "leave", "membership", "enrol", "ca", "health")


@pytest.fixture(scope="module")
def fed() -> Iterator[Federation]:
    with federation() as made:
        yield made


@pytest.fixture(scope="module")
def silo(fed: Federation) -> Iterator[RawSilo]:
    with enrol(fed, "raw-a") as made:
        yield made


@pytest.fixture(scope="module")
def other(fed: Federation) -> Iterator[RawSilo]:
    with enrol(fed, "raw-b") as made:
        yield made


@pytest.fixture(autouse=True)
def unharmed(fed: Federation) -> Iterator[None]:
    """After each test the server lives, and its log has no traceback."""
    yield
    assert fed.processes["server"].poll() is None
    log = (fed.folder / "server" / "server" / "server.log").read_text()
    assert "Traceback" not in log
    assert "Traceback" not in fed.log("server")


def wake(**changes: object) -> bytes:
    return json.dumps({"home": "a" * 64, "boot": 1, "fedplat": "test", **changes}).encode()


def events(fed: Federation) -> int:
    """How many events the server has written: every change of state writes one."""
    with closing(sqlite3.connect(fed.folder / "server" / "server" / "fedplat.db")) as database:
        return int(database.execute("select count(*) from events").fetchone()[0])


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/v1/control/start-run", "/v1/runtime/push-messages"])
def test_nothing_else_of_flower_is_reachable(fed: Federation, silo: RawSilo, path: str) -> None:
    assert silo.post(path, b"").status_code == 404
    with connect(fed) as http:
        assert http.get(path).status_code == 404


@pytest.mark.parametrize("route", ["register-node", "activate-node", "send-node-heartbeat", "get-run", "get-fab"])
def test_fleet_routes_that_no_silo_needs_do_not_exist(silo: RawSilo, route: str) -> None:
    node = Node(node_id=silo.node_id)
    message = {
        "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
        "get-run": run_pb2.GetRunRequest(node=node, run_id=1),
    }.get(route, fleet_pb2.RegisterNodeFleetRequest())
    assert silo.fleet(route, message).status_code == 404


@pytest.mark.parametrize("route", [f"/v1/fleet/{r}" for r in FLEET] + [f"/v1/fedplat/{r}" for r in OURS])
@pytest.mark.parametrize("signed", [False, True])
def test_random_bytes_are_refused_in_words(fed: Federation, silo: RawSilo, route: str, signed: bool) -> None:
    before = events(fed)
    for size in (0, 1, 40, 4000):
        body = os.urandom(size)
        if signed and route.endswith("/leave"):
            continue  # it has no body to be wrong
        headers = None if signed else {"x-fedplat-silo": "raw-a"}
        reply = silo.post(route, body, headers)
        assert 400 <= reply.status_code < 500, (route, size, reply.status_code, reply.text)
        assert "Traceback" not in reply.text
    assert events(fed) == before, "nothing was written"


@pytest.mark.parametrize("route", FLEET)
def test_signed_but_empty_messages_are_the_senders_fault(silo: RawSilo, route: str) -> None:
    kinds: dict[str, type[Proto]] = {
        "pull-messages": fleet_pb2.PullMessagesRequest,
        "pull-object": message_pb2.PullObjectRequest,
        "push-messages": fleet_pb2.PushMessagesRequest,
        "push-object": message_pb2.PushObjectRequest,
    }
    reply = silo.fleet(route, kinds[route](node=Node(node_id=silo.node_id)))
    assert reply.status_code < 500
    if route != "pull-messages":
        assert reply.status_code >= 400


def test_unsigned_body_costs_no_memory(fed: Federation) -> None:
    before = server_memory_mb(fed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for path in ("/v1/fleet/push-object", "/v1/fedplat/wake", "/v1/fedplat/enrol"):
        raw = socket.create_connection(("localhost", fed.port))
        with context.wrap_socket(raw, server_hostname="localhost") as sock:
            sock.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {300 << 20}\r\n\r\n".encode())
            sent, chunk = 0, bytes(1 << 20)
            try:
                while sent < 300 << 20:
                    sock.sendall(chunk)
                    sent += len(chunk)
            except OSError:
                pass
            assert sent < 100 << 20, "the server went on reading"
    assert server_memory_mb(fed) - before < 20


def test_headers_of_one_request_fit_no_other(silo: RawSilo, other: RawSilo) -> None:
    path, body = "/v1/fedplat/progress", b'{"run": "r-1", "phase": "training"}'
    headers = silo.signed(path, body)
    assert silo.post("/v1/fedplat/leave", body, headers).status_code == 401, "another route"
    assert silo.post(path, body.replace(b"r-1", b"r-2"), headers).status_code == 400, "another body"
    assert silo.post(path, body, {**headers, "x-fedplat-silo": "raw-b"}).status_code == 401, "another name"
    headers = silo.signed(path, body)
    assert silo.post(path, body, headers).status_code == 204, "as it was signed"
    again = silo.post(path, body, headers)
    assert again.status_code == 401, "a second time"
    assert "twice" in again.json()["message"]


def test_a_key_that_nobody_enrolled_is_refused(silo: RawSilo) -> None:
    stranger = RawSilo("raw-z", silo.http)
    reply = stranger.post("/v1/fedplat/wake", wake())
    assert reply.status_code == 401
    assert reply.json()["error"] == "unknown_silo"
    impostor = RawSilo("raw-a", silo.http)
    assert impostor.post("/v1/fedplat/wake", wake()).status_code == 401


def test_a_silo_may_ask_who_it_is_and_is_no_longer_here_for_that(fed: Federation) -> None:
    path = "/v1/fedplat/membership"
    with enrol(fed, "raw-e") as silo:
        reply = silo.send("GET", path)
        assert (reply.status_code, reply.json()) == (200, {"silo": "raw-e", "connected": False})
        assert silo.http.get(path).status_code == 401
        silo.call()
        assert silo.send("GET", path).json()["connected"]
        wait_until(lambda: not silo.send("GET", path).json()["connected"], 2 * GRACE_S)


@pytest.mark.parametrize("offset_s", [300.0, -300.0])
def test_clock_skew_is_said_in_words(silo: RawSilo, offset_s: float) -> None:
    path, body = "/v1/fedplat/wake", wake()
    reply = silo.post(path, body, silo.signed(path, body, at=time.time() + offset_s))
    assert reply.status_code == 401
    assert reply.json()["error"] == "clock_skew"
    assert ("ahead of" if offset_s > 0 else "behind") in reply.json()["message"]
    assert "date" in reply.headers


def test_oversized_signed_bodies_are_refused(silo: RawSilo) -> None:
    reply = silo.post("/v1/fedplat/wake", wake(fedplat="x" * 100_000))
    assert reply.status_code == 413


def test_wrong_invites_say_why(fed: Federation, silo: RawSilo) -> None:
    http = silo.http
    line = fed.command("silo", "invite", "raw-c").strip()
    invite = Invite.parse(line)
    key = new_key()
    other_name = http.post("/v1/fedplat/enrol", json=enrol_body(invite, key, "raw-d"))
    assert other_name.status_code == 403
    assert "another silo" in other_name.json()["message"]
    forged = enrol_body(invite, key, "raw-c") | {"public_key": enrol_body(invite, new_key(), "raw-c")["public_key"]}
    assert http.post("/v1/fedplat/enrol", json=forged).status_code == 403
    assert http.post("/v1/fedplat/enrol", json=enrol_body(invite, key, "raw-c")).status_code == 200
    repeated = http.post("/v1/fedplat/enrol", json=enrol_body(invite, key, "raw-c"))
    assert repeated.status_code == 200, "the first answer may have been lost"
    used = http.post("/v1/fedplat/enrol", json=enrol_body(invite, new_key(), "raw-c"))
    assert used.status_code == 403
    assert "already used" in used.json()["message"]
    unknown = http.post("/v1/fedplat/enrol", json=enrol_body(Invite.new("x:1", "0" * 64, "q", 0), key, "raw-q"))
    assert unknown.status_code == 403
    with pytest.raises(CommandFailed, match="enrolled already"):
        fed.command("silo", "invite", "raw-c")
    fed.command("silo", "revoke", "raw-c")


@pytest.fixture(scope="module")
def question(fed: Federation, silo: RawSilo, other: RawSilo) -> Iterator[tuple[int, str, str]]:
    """A join request that waits for raw-b: (Flower's run id, message id, an object's id)."""
    run = fed.submit(add_constant(silos=("raw-b",), minimum=1))
    node = Node(node_id=other.node_id)
    found: list[fleet_pb2.PullMessagesResponse] = []

    def pulled() -> bool:
        other.call()
        reply = other.fleet("pull-messages", fleet_pb2.PullMessagesRequest(node=node))
        assert reply.status_code == 200, reply.text
        found.append(fleet_pb2.PullMessagesResponse.FromString(reply.content))
        return bool(found[-1].messages_list)

    wait_until(pulled, 10)
    head = found[-1].messages_list[0].metadata
    tree = found[-1].message_object_trees[0]
    yield head.run_id, head.message_id, tree.children[0].object_id
    fed.command("run", "stop", run)


class TestInAnothersName:
    """An authenticated silo cannot answer, read or delete what belongs to another."""

    def test_pull_from_anothers_inbox(self, silo: RawSilo, other: RawSilo) -> None:
        theirs = fleet_pb2.PullMessagesRequest(node=Node(node_id=other.node_id))
        assert silo.fleet("pull-messages", theirs).status_code in (401, 403)

    def test_read_anothers_object(self, silo: RawSilo, other: RawSilo, question: tuple[int, str, str]) -> None:
        run, _, thing = question
        ask = message_pb2.PullObjectRequest(node=Node(node_id=silo.node_id), run_id=run, object_id=thing)
        assert silo.fleet("pull-object", ask).status_code == 403
        mine = message_pb2.PullObjectRequest(node=Node(node_id=other.node_id), run_id=run, object_id=thing)
        assert other.fleet("pull-object", mine).status_code == 200

    def test_delete_anothers_message(self, silo: RawSilo, other: RawSilo, question: tuple[int, str, str]) -> None:
        run, message, thing = question
        confirm = message_pb2.ConfirmMessageReceivedRequest(
            node=Node(node_id=silo.node_id), run_id=run, message_object_id=message
        )
        assert silo.fleet("confirm-message-received", confirm).status_code == 404, "the route that deletes"
        mine = message_pb2.PullObjectRequest(node=Node(node_id=other.node_id), run_id=run, object_id=thing)
        answer = message_pb2.PullObjectResponse.FromString(other.fleet("pull-object", mine).content)
        assert answer.object_found
        assert answer.object_content

    @pytest.mark.parametrize("claimed", ["silo", "other"])
    def test_answer_anothers_question(
        self, silo: RawSilo, other: RawSilo, question: tuple[int, str, str], claimed: str
    ) -> None:
        from flwr.app import ConfigRecord, Message, RecordDict
        from flwr.app.message.message import make_message
        from flwr.app.metadata import Metadata
        from flwr.supercore.inflatable.inflatable_object import get_object_tree

        run, message, _ = question
        source = {"silo": silo, "other": other}[claimed].node_id
        meta = Metadata(run, "", source, 1, message, "", time.time(), 60.0, "query.join")
        lie: Message = make_message(meta, RecordDict({"fedplat": ConfigRecord({"body": "{}", "buffer": b""})}))
        meta.__dict__["_message_id"] = lie.object_id
        push = fleet_pb2.PushMessagesRequest(
            node=Node(node_id=silo.node_id),
            messages_list=[message_to_proto(make_message(meta, RecordDict()))],
            message_object_trees=[get_object_tree(lie)],
        )
        assert silo.fleet("push-messages", push).status_code == 403

    def test_adopt_anothers_object(self, silo: RawSilo, other: RawSilo, question: tuple[int, str, str]) -> None:
        """A tree that names an object of someone else would have the server read it as the silo's own."""
        run, _, thing = question
        session = message_pb2.PushObjectRequest(
            node=Node(node_id=silo.node_id), run_id=run, object_id=thing, object_content=b"x", session_id="nonsense"
        )
        assert silo.fleet("push-object", session).status_code == 403


def test_a_second_process_elsewhere_is_refused_and_a_restart_is_not(fed: Federation) -> None:
    with enrol(fed, "raw-twin") as twin:
        check_processes(twin)


def check_processes(twin: RawSilo) -> None:
    path = "/v1/fedplat/wake"
    short = {"runs": ["gone"]}  # a run that is not alive: answered at once
    assert twin.post(path, wake(**short)).status_code == 200
    assert twin.post(path, wake(boot=2, **short)).status_code == 200, "the same home, started again"
    elsewhere = twin.post(path, wake(home="b" * 64, **short))
    assert elsewhere.status_code == 409
    assert "another process" in elsewhere.json()["message"]


def test_a_revoked_silo_is_cut_off_at_once(fed: Federation) -> None:
    with enrol(fed, "raw-gone") as gone:
        check_revoked(fed, gone)


def check_revoked(fed: Federation, gone: RawSilo) -> None:
    answers: list[int] = []

    def hold() -> None:
        answers.append(gone.post("/v1/fedplat/wake", wake()).status_code)

    thread = threading.Thread(target=hold)
    thread.start()
    wait_until(lambda: fed.connected("raw-gone"), 5)
    begun = time.monotonic()
    fed.command("silo", "revoke", "raw-gone")
    thread.join(5)
    assert answers == [403]
    assert time.monotonic() - begun < 3
    reply = gone.post("/v1/fedplat/wake", wake())
    assert reply.status_code == 403
    assert reply.json()["error"] == "revoked"


def test_signatures_of_other_purposes_open_nothing(silo: RawSilo) -> None:
    body = wake()
    headers = sign_request(silo.key, silo.name, "GET", "/v1/fedplat/wake", "0" * 64, len(body), time.time(), "0" * 32)
    assert silo.post("/v1/fedplat/wake", body, headers).status_code == 401
