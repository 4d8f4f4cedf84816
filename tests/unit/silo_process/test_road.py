"""The road of large buffers against a real server that breaks it in every way."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from fedplat.bufferfiles import Region
from fedplat.errors import WireError
from fedplat.wire.buffers import PIECE_BYTES, BufferRef
from fedplat.wire.http import BUFFERS
from fedplat_silo import line, road
from fedplat_silo.backoff import Backoff
from fedplat_silo.road import Road
from fedplat_silo.trainer.errors import Cancelled
from tests.unit.silo_process.roadside import RoadServer, name_of, road_server

DATA = random.Random(0).randbytes(5 * PIECE_BYTES + 12_345)
REF = name_of(DATA)
LIMIT_BYTES = len(DATA) * 1.02 + PIECE_BYTES


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RoadServer]:
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (0.01, 0.02))
    monkeypatch.setattr(road, "REFUSED_PAUSE_S", 0.01)
    with road_server(tmp_path) as made:
        made.offers[REF.digest] = DATA
        made.expected.add(("r-1", 7))
        yield made


@pytest.fixture
def region(tmp_path: Path) -> Region:
    path = tmp_path / "7.buffer"
    path.write_bytes(b"before" + DATA)
    return Region(path, 6, len(DATA))


def fetch(server: RoadServer, folder: Path, silo: Road | None = None, ref: BufferRef = REF) -> bytes:
    return (silo or server.road()).fetch("r-1", ref, folder / "r-1", lambda _share: None).read_bytes()


def deliver(server: RoadServer, region: Region, silo: Road | None = None) -> bytes:
    (silo or server.road()).deliver("r-1", 7, region, REF, lambda _share: None)
    return server.content("r-1", 7)


class Move(Protocol):
    def __call__(self, server: RoadServer, folder: Path, region: Region, silo: Road | None = None) -> bytes: ...


MOVES: dict[str, Move] = {
    "down": lambda server, folder, _region, silo=None: fetch(server, folder, silo),
    "up": lambda server, _folder, region, silo=None: deliver(server, region, silo),
}
each_way = pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)


def test_a_buffer_comes_down_once(server: RoadServer, tmp_path: Path) -> None:
    shares: list[float] = []
    path = server.road().fetch("r-1", REF, tmp_path / "r-1", shares.append)
    assert path.name == f"weights-{REF.digest[:16]}.weights"
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert server.seen == [f"GET {BUFFERS}/r-1/{REF.digest}?offset=0"]
    assert fetch(server, tmp_path) == DATA
    assert len(server.seen) == 1, "what is there is not brought again"
    path.write_bytes(DATA[:-1] + b"x")
    assert fetch(server, tmp_path) == DATA, "unless it is damaged"


def test_a_buffer_goes_up_piece_by_piece_over_one_connection(server: RoadServer, region: Region) -> None:
    shares: list[float] = []
    server.road().deliver("r-1", 7, region, REF, shares.append)
    assert server.content("r-1", 7) == DATA
    assert server.seen[0] == f"POST {BUFFERS}"
    assert server.seen[1:] == [f"PUT {BUFFERS}/r-1/7?offset={start}" for start in range(0, len(DATA), PIECE_BYTES)]
    assert server.num_connections == 1
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > len(REF.pieces), "also within a piece"
    deliver(server, region)
    assert len(server.seen) == 8, "asked again: only announced again"


@each_way
def test_twenty_cuts_cost_little(server: RoadServer, tmp_path: Path, region: Region, move: Move) -> None:
    server.cuts = sorted(random.Random(1).sample(range(len(DATA)), 20))
    assert move(server, tmp_path, region) == DATA
    assert not server.cuts
    assert server.num_connections == 21
    # what the test's server has read is what arrived; what was on its way when the line broke is in neither count
    assert server.passed_bytes <= len(DATA) * 1.02 + 20 * line.CHUNK_BYTES


@each_way
def test_a_damaged_piece_is_brought_again(server: RoadServer, tmp_path: Path, region: Region, move: Move) -> None:
    server.damage = [PIECE_BYTES + 1, 3 * PIECE_BYTES - 1]
    assert move(server, tmp_path, region) == DATA
    assert not server.damage
    # each time its piece, and what was on its way behind it
    assert server.passed_bytes <= len(DATA) + 4 * PIECE_BYTES


@each_way
def test_a_server_that_cannot_just_now_is_asked_again(
    server: RoadServer, tmp_path: Path, region: Region, move: Move, caplog: pytest.LogCaptureFixture
) -> None:
    server.refusals = [(method, 503, "unavailable") for method in ("GET", "POST", "PUT") for _ in range(6)]
    assert move(server, tmp_path, region) == DATA
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "a transfer does not get through, and is tried again: no" in warnings[0]


@each_way
def test_a_round_that_is_over_ends_a_transfer(server: RoadServer, tmp_path: Path, region: Region, move: Move) -> None:
    server.offers.clear()
    server.expected.clear()
    with pytest.raises(Cancelled):
        move(server, tmp_path, region)
    assert len(server.seen) == 1


def test_a_refusal_in_the_middle_of_a_body_is_read(server: RoadServer, region: Region) -> None:
    server.refusals = [("PUT", 409, "conflict")]
    with pytest.raises(Cancelled):
        deliver(server, region)
    assert [seen[:3] for seen in server.seen] == ["POS", "PUT"]


@each_way
def test_what_makes_no_sense_is_an_error(server: RoadServer, tmp_path: Path, region: Region, move: Move) -> None:
    server.refusals = [("GET", 413, "too_large"), ("PUT", 413, "too_large")]
    with pytest.raises(WireError):
        move(server, tmp_path, region)


def test_a_buffer_of_another_length_is_an_error(server: RoadServer, tmp_path: Path) -> None:
    server.offers[REF.digest] = DATA[:-1]
    with pytest.raises(WireError, match="of a buffer of"):
        fetch(server, tmp_path)


@each_way
def test_a_wrong_clock_is_corrected(server: RoadServer, tmp_path: Path, region: Region, move: Move) -> None:
    server.clock_offset_s = -3600.0
    assert move(server, tmp_path, region) == DATA
    assert server.num_connections == 2


@each_way
def test_a_restarted_silo_goes_on(server: RoadServer, tmp_path: Path, region: Region, move: Move) -> None:
    """New objects over the same files, in the middle of both."""
    half_way = threading.Event()
    server.on_chunk = lambda passed: half_way.set() if passed > len(DATA) / 2 else None
    server.pause_s = 0.002
    dying = server.road()
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            move(server, tmp_path, region, dying)
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert half_way.wait(10)
    begun_s = time.monotonic()
    dying.close()
    thread.join(5)
    assert time.monotonic() - begun_s < 1.0, "at once"
    assert len(outcome) == 1
    with pytest.raises(Cancelled):
        fetch(server, tmp_path, dying)
    assert move(server, tmp_path, region) == DATA
    assert server.passed_bytes <= LIMIT_BYTES


@each_way
def test_a_cancelled_transfer_makes_room_for_the_next(
    server: RoadServer, tmp_path: Path, region: Region, move: Move
) -> None:
    silo = server.road()
    silo.cancel()  # nothing is on its way: no effect
    server.on_chunk = lambda passed: silo.cancel() if passed > len(DATA) / 2 else None
    with pytest.raises(Cancelled):
        move(server, tmp_path, region, silo)
    server.on_chunk = lambda _passed: None
    assert move(server, tmp_path, region, silo) == DATA
    assert server.passed_bytes <= LIMIT_BYTES


@each_way
def test_closing_ends_the_wait_for_a_server_that_is_away(tmp_path: Path, region: Region, move: Move) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with road_server(tmp_path) as server:
            away = Road(f"localhost:{nobody.getsockname()[1]}", server.road()._tls, server.road()._signer)
        threading.Timer(0.3, away.close).start()
        begun_s = time.monotonic()
        with pytest.raises(Cancelled):
            move(server, tmp_path, region, away)
        assert time.monotonic() - begun_s < 2.0


@each_way
def test_slow_is_not_dead_and_silent_is(
    server: RoadServer, tmp_path: Path, region: Region, move: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "IDLE_TIMEOUT_S", 0.5)
    server.pause_s = 0.004  # in all some 2 s
    stalls = [len(DATA) // 2]

    def stall(passed: int) -> None:
        if stalls and passed > stalls[0]:
            stalls.clear()
            time.sleep(1.5)

    server.on_chunk = stall
    assert move(server, tmp_path, region) == DATA
    assert server.num_connections == 2


def test_other_weights_replace_what_was_fetched(server: RoadServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    (tmp_path / "r-1" / "weights-0000000000000000.incoming").write_bytes(b"half")
    (tmp_path / "r-1" / "1.update").write_bytes(b"mine")
    other = b"other" * 1000
    server.offers[name_of(other).digest] = other
    assert fetch(server, tmp_path, ref=name_of(other)) == other
    names = sorted(path.name for path in (tmp_path / "r-1").iterdir())
    assert names == ["1.update", f"weights-{name_of(other).digest[:16]}.weights"]


@pytest.mark.parametrize("damage", ["flipped", "short"])
def test_an_update_that_is_damaged_here_is_not_sent_for_ever(
    server: RoadServer, region: Region, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = region.path.read_bytes()
    place = 6 + PIECE_BYTES + 1
    rest = b"" if damage == "short" else bytes([whole[place] ^ 1]) + whole[place + 1 :]
    region.path.write_bytes(whole[:place] + rest)
    with pytest.raises(Cancelled):
        deliver(server, region)
    assert "damaged on this disk" in caplog.text


def test_a_certificate_of_another_ca_is_not_believed_for_ever(server: RoadServer, tmp_path: Path) -> None:
    with road_server(tmp_path / "other") as other:
        stranger = Road(server.address, other.road()._tls, server.road()._signer)
    threading.Timer(0.3, stranger.close).start()
    with pytest.raises(Cancelled):
        fetch(server, tmp_path, stranger)
    assert server.seen == [], "nothing is said to a stranger"
