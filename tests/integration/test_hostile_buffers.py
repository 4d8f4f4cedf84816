"""Whoever sends or asks for large buffers that nobody waits for, or other bytes than were agreed: refused while it
streams, with the right status and without memory, and the round goes on as if nothing had been."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

import numpy as np
import pytest
from flwr.app import Metadata

from fedplat.identity import new_key, new_nonce, sign_request
from fedplat.params import Group, Layout, Parameter
from fedplat.wire.buffers import PIECE_BYTES, BufferRef, PieceHasher
from fedplat.wire.http import BUFFERS
from fedplat.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    JoinRequest,
    TrainReply,
    TrainRequest,
    WeightsReply,
    WeightsRequest,
    layout_to_wire,
)
from tests.support.federation import Federation, add_constant, federation, wait_until
from tests.support.rawsilo import RawSilo, connect, enrol, server_memory_mb, status_of, stream

SIZE = (2 * PIECE_BYTES + 4000) // 4  # float32: two whole pieces and a short one
LAYOUT = Layout((Parameter("w", (SIZE,), "float32"),), (Group.SHARED,))
MB = 1 << 20


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE).astype("<f4")


INITIAL = numbers(0)
UPDATES = {"raw-a": numbers(1).tobytes(), "raw-b": numbers(2).tobytes()}


def named(data: bytes) -> BufferRef:
    hasher = PieceHasher()
    hasher.update(data)
    return hasher.ref()


@dataclass
class Round:
    """A round of a large model that waits for the updates of raw-a and raw-b; raw-c is enrolled and not in the run."""

    fed: Federation
    a: RawSilo
    b: RawSilo
    c: RawSilo
    run: str
    weights: BufferRef
    questions: list[tuple[RawSilo, Metadata]] = field(default_factory=list)

    def announce(self, silo: RawSilo, data: bytes | None = None, step: int = 1) -> int:
        """Honest; returns from where on the server wants it."""
        reply = self.try_announce(silo, named(data or UPDATES[silo.name]).model_dump(mode="json"), step=step)
        assert reply[0] == 200, reply
        return int(str(reply[1]["have_bytes"]))

    def try_announce(self, silo: RawSilo, buffer: object, **changes: object) -> tuple[int, dict[str, object]]:
        body = json.dumps({"run": self.run, "step": 1, "buffer": buffer, **changes}).encode()
        reply = silo.send("POST", BUFFERS, body)
        return reply.status_code, reply.json()

    def put(self, silo: RawSilo, offset: object, body: bytes, step: object = 1) -> tuple[int, str]:
        """The status, and the word for programs."""
        reply = silo.send("PUT", self.place(offset, step), body)
        return reply.status_code, reply.json().get("error", "")

    def place(self, offset: object, step: object = 1) -> str:
        return f"{BUFFERS}/{self.run}/{step}?offset={offset}"

    def get(self, silo: RawSilo, offset: object = 0, digest: str = "") -> tuple[int, bytes]:
        reply = silo.send("GET", f"{BUFFERS}/{self.run}/{digest or self.weights.digest}?offset={offset}")
        return reply.status_code, reply.content

    def staged(self) -> dict[str, int]:
        """What lies on the server's disk for this round."""
        folder = next(self.fed.folder.glob(f"server/**/{self.run}/staging"))
        return {path.name: path.stat().st_size for path in folder.iterdir()}


def deliver(place: Round, silo: RawSilo, data: bytes, step: int) -> None:
    have = place.announce(silo, data, step)
    while have < len(data):
        end = min(len(data), (have // PIECE_BYTES + 1) * PIECE_BYTES)
        reply = silo.send("PUT", place.place(have, step), data[have:end])
        assert reply.status_code == 200, reply.text
        have = reply.json()["have_bytes"]


def join(silo: RawSilo, run: str, beside: RawSilo) -> None:
    asked, _ = silo.question(JoinRequest, beside=[beside])
    silo.answer(asked, JoinReply(run=run, silo=silo.name, layout=layout_to_wire(LAYOUT), num_examples=10))


def begin(fed: Federation, a: RawSilo, b: RawSilo, c: RawSilo) -> Round:
    """A run of `a` and `b`, up to the question of its first round."""
    run = fed.submit(add_constant(rounds=1, silos=(a.name, b.name), minimum=2, timeout_s=600))
    place = Round(fed, a, b, c, run, named(INITIAL.tobytes()))
    join(a, run, beside=b)
    join(b, run, beside=a)
    asked, _ = a.question(WeightsRequest)
    deliver(place, a, INITIAL.tobytes(), step=0)
    a.answer(asked, WeightsReply(run=run, silo=a.name, buffer=place.weights))
    for silo in (a, b):
        asked, parcel = silo.question(TrainRequest)
        assert parcel.body.buffer == place.weights
        assert parcel.buffer == b""
        place.questions.append((silo, asked))
    return place


@pytest.fixture(scope="module")
def round_1() -> Iterator[Round]:
    with federation() as fed, enrol(fed, "raw-a") as a, enrol(fed, "raw-b") as b, enrol(fed, "raw-c") as c:
        yield begin(fed, a, b, c)


@pytest.fixture(autouse=True)
def unharmed(round_1: Round) -> Iterator[None]:
    """After each test the server lives, its log has no traceback, and the round still waits."""
    yield
    assert round_1.fed.processes["server"].poll() is None
    assert "Traceback" not in (round_1.fed.folder / "server" / "server" / "server.log").read_text()
    assert "Traceback" not in round_1.fed.log("server")


class TestAnnouncements:
    def test_only_the_agreed_length_can_be_announced(self, round_1: Round) -> None:
        before = round_1.staged()
        for data in (UPDATES["raw-a"][:-4], UPDATES["raw-a"] + bytes(4), b"x"):
            status, problem = round_1.try_announce(round_1.a, named(data).model_dump(mode="json"))
            assert (status, problem["error"]) == (400, "malformed")
        assert round_1.staged() == before

    @pytest.mark.parametrize("step", [0, 2, 10**9])
    def test_a_round_that_is_over_or_not_begun_takes_nothing(self, round_1: Round, step: int) -> None:
        status, problem = round_1.try_announce(round_1.a, named(UPDATES["raw-a"]).model_dump(mode="json"), step=step)
        assert (status, problem["error"]) == (409, "conflict")
        assert round_1.put(round_1.a, 0, UPDATES["raw-a"][:PIECE_BYTES], step) == (409, "conflict")

    def test_a_run_that_is_none_or_not_ones_own_takes_nothing(self, round_1: Round) -> None:
        buffer = named(UPDATES["raw-a"]).model_dump(mode="json")
        for silo, run in ((round_1.a, "no-such-run"), (round_1.c, round_1.run)):
            status, problem = round_1.try_announce(silo, buffer, run=run)
            assert (status, problem["error"]) == (409, "conflict")

    @pytest.mark.parametrize(
        "buffer",
        [
            None,
            {},
            {"size_bytes": 0, "pieces": []},
            {"size_bytes": -1, "pieces": ["0" * 64]},
            {"size_bytes": 4 * SIZE, "pieces": ["0" * 64] * 2},
            {"size_bytes": 4 * SIZE, "pieces": ["0" * 64, "0" * 64, "../../etc/passwd"]},
            {"size_bytes": 4 * SIZE, "pieces": ["0" * 64] * 3, "path": "/"},
            {"size_bytes": 2**80, "pieces": ["0" * 64]},
            "[" * 50_000,
        ],
    )
    def test_what_is_no_buffer_is_malformed(self, round_1: Round, buffer: object) -> None:
        status, problem = round_1.try_announce(round_1.a, buffer)
        assert (status, problem["error"]) == (400, "malformed")

    def test_random_bytes_and_huge_bodies_are_refused(self, round_1: Round) -> None:
        for body in (b"", b"\xff\x00", b"[" * 100_000, b"null"):
            assert round_1.a.send("POST", BUFFERS, body).status_code == 400
        signed = sign_request(round_1.a.key, "raw-a", "POST", BUFFERS, "0" * 64, 300 * MB, time.time(), new_nonce())
        headers = signed | {"content-length": str(300 * MB)}
        answer, sent = stream(round_1.fed, BUFFERS, headers, 300 * MB, method="POST")
        assert status_of(answer) == 413
        assert sent < 100 * MB

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "PATCH"])
    def test_there_is_nothing_else_to_do(self, round_1: Round, method: str) -> None:
        assert round_1.a.send(method, BUFFERS).status_code == 405
        if method in ("DELETE", "PATCH"):
            assert round_1.a.send(method, round_1.place(0), b"x").status_code == 405


class TestUploads:
    def test_a_piece_comes_only_after_its_announcement(self, round_1: Round) -> None:
        assert round_1.put(round_1.b, 0, UPDATES["raw-b"][:PIECE_BYTES]) == (400, "damaged")
        assert "raw-b.incoming" not in round_1.staged()

    def test_too_long_and_too_short(self, round_1: Round) -> None:
        have = round_1.announce(round_1.a)
        for size in (0, 1, PIECE_BYTES - 1):
            assert round_1.put(round_1.a, have, UPDATES["raw-a"][:size]) == (400, "malformed")
        for size in (PIECE_BYTES + 1, 2 * PIECE_BYTES):
            assert round_1.put(round_1.a, have, UPDATES["raw-a"][:size]) == (413, "too_large")
        assert round_1.announce(round_1.a) == have

    def test_a_length_that_is_not_the_signed_one(self, round_1: Round) -> None:
        have = round_1.announce(round_1.a)
        target = round_1.place(have)
        signed = round_1.a.signed(target, UPDATES["raw-a"][:PIECE_BYTES], method="PUT")
        for headers in (
            {"content-length": str(PIECE_BYTES + 1)},
            {"content-length": "1"},
            {"transfer-encoding": "chunked"},
            {"transfer-encoding": "chunked", "content-length": str(PIECE_BYTES)},
        ):
            answer, _ = stream(round_1.fed, target, signed | headers, 1)
            assert status_of(answer) in (400, 401), answer
        assert round_1.announce(round_1.a) == have

    def test_a_body_that_ends_too_early_stays_and_goes_on(self, round_1: Round) -> None:
        have = round_1.announce(round_1.a)
        assert have % PIECE_BYTES == 0
        piece = UPDATES["raw-a"][have : have + PIECE_BYTES]
        target = round_1.place(have)
        signed = round_1.a.signed(target, piece, method="PUT")
        stream(round_1.fed, target, signed | {"content-length": str(PIECE_BYTES)}, 3 * MB, piece, hang_up=True)
        there = round_1.announce(round_1.a)
        assert have <= there <= have + 3 * MB
        rest = UPDATES["raw-a"][there : have + PIECE_BYTES]
        for wrong in (rest[:100], rest[:-1]):  # honestly signed, and not the rest of the piece
            assert round_1.put(round_1.a, there, wrong) == (400, "malformed")
        assert round_1.announce(round_1.a) == there
        assert round_1.put(round_1.a, there, rest) == (200, "")
        assert round_1.announce(round_1.a) == have + PIECE_BYTES

    def test_a_piece_of_another_digest(self, round_1: Round) -> None:
        have = round_1.announce(round_1.b, UPDATES["raw-b"])
        other = UPDATES["raw-a"][:PIECE_BYTES]
        assert round_1.put(round_1.b, have, other) == (400, "malformed"), "honestly signed, refused before it is read"
        piece = UPDATES["raw-b"][have : have + PIECE_BYTES]
        headers = round_1.b.signed(round_1.place(have), piece, method="PUT")
        reply = round_1.b.send("PUT", round_1.place(have), other, headers)
        assert (reply.status_code, reply.json()["error"]) == (400, "damaged"), "other bytes than were signed"
        assert round_1.announce(round_1.b) == have

    def test_wrong_signatures(self, round_1: Round) -> None:
        have = round_1.announce(round_1.a)
        target, piece = round_1.place(have), UPDATES["raw-a"][have : have + PIECE_BYTES]
        digest, now = hashlib.sha256(piece).hexdigest(), time.time()
        impostor = sign_request(new_key(), "raw-a", "PUT", target, digest, len(piece), now, new_nonce())
        other_place = round_1.a.signed(round_1.place(have + 1), piece, method="PUT")
        other_method = round_1.a.signed(target, piece, method="GET")
        other_silo = round_1.b.signed(target, piece, method="PUT") | {"x-fedplat-silo": "raw-a"}
        stranger = RawSilo("raw-z", round_1.a.http).signed(target, piece, method="PUT")
        for headers in (impostor, other_place, other_method, other_silo, stranger, {}):
            assert round_1.a.send("PUT", target, piece, headers).status_code == 401
        used = round_1.a.signed(target, piece, method="PUT")
        assert round_1.a.send("PUT", target, piece, used).status_code == 200
        assert round_1.a.send("PUT", target, piece, used).status_code == 401, "a second time"

    def test_nobody_sends_anothers_update(self, round_1: Round) -> None:
        have = round_1.announce(round_1.a)
        piece = UPDATES["raw-a"][have : (have // PIECE_BYTES + 1) * PIECE_BYTES]
        assert round_1.put(round_1.c, have, piece) == (409, "conflict")
        before = round_1.staged()
        round_1.put(round_1.b, have, piece)
        assert round_1.staged()["raw-a.incoming"] == before["raw-a.incoming"]

    @pytest.mark.parametrize(
        "offset", ["-1", "x", "", "1e3", "0x10", "%D9%A1", "1.0", "9" * 18, "9" * 19, "9" * 5000, "4", 4 * SIZE]
    )
    def test_an_offset_that_makes_no_sense(self, round_1: Round, offset: object) -> None:
        assert round_1.put(round_1.a, offset, b"x" * 10)[0] == 400
        status, _ = round_1.get(round_1.a, offset)
        assert status == (200 if offset == "4" else 400)

    @pytest.mark.parametrize("step", ["x", "-1", "1.0", "%D9%A1", "9" * 5000, "..%2f..", "%00"])
    def test_a_step_that_makes_no_sense(self, round_1: Round, step: str) -> None:
        target = f"{BUFFERS}/{round_1.run}/{step}?offset=0"
        path = unquote(target)
        headers = round_1.a.signed(path, b"x", method="PUT")
        assert round_1.a.send("PUT", target, b"x", headers).status_code in (400, 401, 404)


class TestDownloads:
    @pytest.mark.parametrize("offset", [0, 1, PIECE_BYTES, 4 * SIZE - 1])
    def test_the_silos_of_the_round_get_the_weights_from_any_byte_on(self, round_1: Round, offset: int) -> None:
        for silo in (round_1.a, round_1.b):
            assert round_1.get(silo, offset) == (200, INITIAL.tobytes()[offset:])

    def test_nobody_else_gets_anything(self, round_1: Round) -> None:
        assert round_1.get(round_1.c)[0] == 409
        path = f"{BUFFERS}/{round_1.run}/{round_1.weights.digest}?offset=0"
        with connect(round_1.fed) as http:
            assert http.get(path).status_code == 401
        assert round_1.c.send("GET", path, b"", round_1.a.signed(path, b"", method="PUT")).status_code == 401

    @pytest.mark.parametrize("digest", ["0" * 64, "x", "..", "%2e%2e%2fround-0000000.json", "9" * 5000])
    def test_what_is_not_offered_is_not_there(self, round_1: Round, digest: str) -> None:
        path = unquote(f"{BUFFERS}/{round_1.run}/{digest}?offset=0")
        headers = round_1.a.signed(path, b"", method="GET")
        reply = round_1.a.send("GET", f"{BUFFERS}/{round_1.run}/{digest}?offset=0", b"", headers)
        assert reply.status_code in (401, 404, 409)

    def test_the_update_of_a_colleague_is_not_offered(self, round_1: Round) -> None:
        assert round_1.get(round_1.b, digest=named(UPDATES["raw-a"]).digest)[0] == 409


class TestMemory:
    def test_large_bodies_of_strangers_and_of_silos_are_refused_while_they_stream(self, round_1: Round) -> None:
        size = 300 * MB
        target = round_1.place(round_1.announce(round_1.a))
        before = server_memory_mb(round_1.fed)
        signed = sign_request(round_1.a.key, "raw-a", "PUT", target, "0" * 64, size, time.time(), new_nonce())
        for headers, status in (({}, 401), ({"x-fedplat-silo": "raw-a"}, 401), (signed, 413)):
            answer, sent = stream(round_1.fed, target, headers | {"content-length": str(size)}, size)
            assert sent < 100 * MB, "the server went on reading"
            assert status_of(answer) == status
        assert server_memory_mb(round_1.fed) - before < 20

    def test_a_refusal_does_not_wait_for_the_body(self, round_1: Round) -> None:
        piece = UPDATES["raw-a"][:PIECE_BYTES]
        target = round_1.place(0)
        headers = round_1.c.signed(target, piece, method="PUT") | {"content-length": str(len(piece))}
        answer, sent = stream(round_1.fed, target, headers, len(piece), piece)
        assert status_of(answer) == 409
        assert sent == 0

    def test_honest_uploads_and_downloads_need_little(self, round_1: Round) -> None:
        before = server_memory_mb(round_1.fed)
        for _ in range(5):
            assert round_1.get(round_1.a)[0] == 200
        assert server_memory_mb(round_1.fed) - before < 10


def test_after_all_that_the_round_ends_with_the_right_mean(round_1: Round) -> None:
    fed, run = round_1.fed, round_1.run
    for silo, asked in round_1.questions:
        data = UPDATES[silo.name]
        deliver(round_1, silo, data, step=1)
        assert round_1.put(silo, len(data), b"") == (400, "damaged"), "nothing comes after the end"
        assert round_1.announce(silo) == len(data)
        silo.answer(asked, TrainReply(run=run, silo=silo.name, round=1, step=1, weight=1.0, buffer=named(data)))
    for silo in (round_1.a, round_1.b):
        asked, parcel = silo.question(EvaluateRequest)
        ref = parcel.body.buffer
        assert ref is not None
        assert named(round_1.get(silo, digest=ref.digest)[1]) == ref
        silo.answer(asked, EvaluateReply(run=run, silo=silo.name, round=1))
    fed.wait_for(run)
    assert round_1.staged() == {}
    mean = np.zeros(SIZE)
    for data in UPDATES.values():
        mean += np.frombuffer(data, "<f4").astype(np.float64) * 0.5
    expected = (INITIAL.astype(np.float64) + mean.astype(np.float32)).astype(np.float32)
    assert fed.weights(run)["w"].tobytes() == expected.tobytes()
    status, problem = round_1.try_announce(round_1.a, named(UPDATES["raw-a"]).model_dump(mode="json"))
    assert (status, problem["error"]) == (409, "conflict")
    assert round_1.put(round_1.a, 0, UPDATES["raw-a"][:PIECE_BYTES]) == (409, "conflict")
    assert round_1.get(round_1.a)[0] == 409


def test_a_run_that_is_stopped_in_the_middle_leaves_nothing_on_disk(round_1: Round) -> None:
    fed = round_1.fed
    with enrol(fed, "raw-d") as d, enrol(fed, "raw-e") as e:
        for ends in (("stop",), ("pause", "stop")):
            stopped = begin(fed, d, e, round_1.c)
            have = stopped.announce(d, UPDATES["raw-a"])
            assert stopped.put(d, have, UPDATES["raw-a"][:PIECE_BYTES]) == (200, "")
            assert stopped.staged() == {"raw-d.incoming": PIECE_BYTES}
            for word in ends:
                fed.command("run", word, stopped.run)
            wait_until(lambda: not stopped.staged(), 10)  # noqa: B023
            assert stopped.get(d)[0] == 409
