"""The road when the disk fails, what it offers, and what counts as movement."""

from __future__ import annotations

import errno
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from fedplat import bufferfiles, durable
from fedplat.bufferfiles import Region
from fedplat.errors import ConflictError, StoreUnavailableError, WireError
from fedplat.wire.buffers import BufferRef
from fedplat_server.road import Transfer
from tests.support.roadscene import DATA, PIECE, Scene, named

Usage = namedtuple("Usage", "free")


class TestDisk:
    """A disk that fails pauses the run, and costs nothing that has come."""

    STEPS = ("mkdir", "reopen", "write", "fsync", "rename")

    @pytest.mark.parametrize("step", STEPS)
    def test_a_full_disk_is_said_to_silo_and_run(
        self, scene: Scene, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = durable.Filesystem()

        def fails(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(full, step, fails)
        with monkeypatch.context() as patch:
            for where in (durable, bufferfiles):
                patch.setattr(where, "filesystem", full)
            with pytest.raises(StoreUnavailableError, match="disk does not take the upload"):
                scene.send(start=scene.announce())
        assert scene.alarms == 1
        with pytest.raises(OSError, match="No space"):
            scene.road.check("run")
        scene.road.close("run")
        scene.restart()  # the run goes on after there is space
        scene.road.check("run")
        scene.send(start=scene.announce())
        assert scene.files() == {"a.buffer": DATA}

    def test_what_does_not_fit_is_refused_before_it_comes(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        scene.announce()
        scene.send(stop=100)
        monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(len(DATA) - 100))
        assert scene.announce() == 100
        monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(len(DATA) - 101))
        with pytest.raises(StoreUnavailableError):
            scene.announce()
        with pytest.raises(OSError, match="do not fit on the disk"):
            scene.road.check("run")
        assert scene.alarms == 1

    def test_a_failed_write_does_not_spoil_what_comes_after_it(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class HalfFull(durable.Filesystem):
            def write(self, fd: int, data: memoryview) -> int:
                if len(data) > 5:
                    return super().write(fd, data[:5])
                raise OSError(errno.EIO, "Input/output error")

        scene.announce()
        with monkeypatch.context() as patch:
            patch.setattr(bufferfiles, "filesystem", HalfFull())
            with pytest.raises(StoreUnavailableError):
                scene.upload(0).write(DATA[:12])
        scene.send(start=scene.announce())
        assert scene.files() == {"a.buffer": DATA}


class TestOffers:
    @pytest.fixture
    def offered(self, scene: Scene, tmp_path: Path) -> BufferRef:
        path = tmp_path / "weights"
        path.write_bytes(b"header" + DATA + b"state")
        scene.road.offer("run", named(DATA), Region(path, 6, len(DATA)), frozenset({"a", "b"}))
        return named(DATA)

    @pytest.mark.parametrize("offset", [0, 1, PIECE, len(DATA) - 1])
    def test_a_silo_gets_what_is_offered_from_any_byte_on(self, scene: Scene, offered: BufferRef, offset: int) -> None:
        region, transfer = scene.road.download("a", "run", offered.digest, offset)
        assert region.read(offset, len(DATA)) == DATA[offset:]
        assert (transfer.done_bytes, transfer.total_bytes, transfer.upload) == (offset, len(DATA), False)

    @pytest.mark.parametrize("offset", [len(DATA), len(DATA) + 1, 10**17])
    def test_there_is_nothing_after_its_end(self, scene: Scene, offered: BufferRef, offset: int) -> None:
        with pytest.raises(WireError, match=f"the buffer has {len(DATA)} bytes"):
            scene.road.download("a", "run", offered.digest, offset)

    def test_nobody_else_gets_it_and_nobody_gets_more(self, scene: Scene, offered: BufferRef) -> None:
        for silo, run, digest in (("c", "run", offered.digest), ("a", "run", "0" * 64), ("a", "no", offered.digest)):
            with pytest.raises(ConflictError):
                scene.road.download(silo, run, digest, 0)

    def test_the_next_offer_takes_its_place(self, scene: Scene, offered: BufferRef, tmp_path: Path) -> None:
        scene.road.offer("run", named(b"new"), Region(tmp_path / "new", 0, 3), frozenset({"b"}))
        with pytest.raises(ConflictError):
            scene.road.download("a", "run", offered.digest, 0)
        with pytest.raises(ConflictError):
            scene.road.download("a", "run", named(b"new").digest, 0)
        scene.road.download("b", "run", named(b"new").digest, 0)
        scene.road.close("run")
        with pytest.raises(ConflictError):
            scene.road.download("b", "run", named(b"new").digest, 0)


class TestMovement:
    """What moves is waited for; what only tries is not."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        now_s = [time.monotonic()]
        monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

        def passes(seconds: float) -> None:
            now_s[0] += seconds

        return passes

    @staticmethod
    def left_s(scene: Scene, begun_s: float, silo: str = "a") -> float:
        """How much longer a step with a timeout of 100 s waits for a silo."""
        return scene.road.deadline_s("run", silo, begun_s, 100.0) - time.monotonic()

    def test_a_transfer_that_gets_further_is_waited_for(
        self, scene: Scene, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fedplat_server.road.MIN_BYTES_PER_S", 0.1)
        begun_s = time.monotonic()
        scene.restart()
        scene.announce()
        assert self.left_s(scene, begun_s) == pytest.approx(100)
        for have in range(0, 40, 10):
            clock(90)
            scene.send(start=have, stop=have + 10)
            assert self.left_s(scene, begun_s) == pytest.approx(100), "and then it has the whole time to train"
        assert self.left_s(scene, begun_s, "b") == pytest.approx(100 - 4 * 90)
        clock(60)
        assert self.left_s(scene, begun_s) == pytest.approx(40)

    def test_a_byte_now_and_then_buys_no_time(self, scene: Scene, clock: Callable[[float], None]) -> None:
        begun_s = time.monotonic()
        scene.restart()
        scene.announce()
        for have in range(4):
            clock(25)
            scene.send(start=have, stop=have + 1)
        assert self.left_s(scene, begun_s) < 0.01

    def test_attempts_that_get_no_further_buy_no_time(self, scene: Scene, clock: Callable[[float], None]) -> None:
        """A proxy that lets nothing large through must not hold up a round for ever."""
        begun_s = time.monotonic()
        scene.restart()
        for _ in range(3):
            scene.announce()
            clock(20)
        assert self.left_s(scene, begun_s) == pytest.approx(40)

    def test_a_download_that_begins_again_and_again_buys_no_time(
        self, scene: Scene, clock: Callable[[float], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fedplat_server.road.MIN_BYTES_PER_S", 0.1)
        begun_s = time.monotonic()
        scene.road.offer("run", named(DATA), Region(tmp_path / "w", 0, len(DATA)), frozenset({"a"}))
        for _ in range(3):
            _, transfer = scene.road.download("a", "run", named(DATA).digest, 0)
            transfer.move_to(50)
            clock(20)
        assert self.left_s(scene, begun_s) == pytest.approx(40)
        transfer.move_to(len(DATA))
        assert self.left_s(scene, begun_s) == pytest.approx(100), "now it trains"

    def test_rate_and_time_left_follow_what_comes(self, clock: Callable[[float], None]) -> None:
        transfer = Transfer("a", upload=True, total_bytes=100_000)
        assert transfer.left_s is None
        transfer.start_at(40_000)
        for done in range(40_100, 50_100, 100):
            clock(0.1)
            transfer.move_to(done)
        assert transfer.bytes_per_s == pytest.approx(1000, rel=0.01)
        assert transfer.left_s == pytest.approx(50, rel=0.01)
        clock(60)
        transfer.move_to(50_000)
        assert transfer.bytes_per_s == 0
        assert transfer.left_s is None
