from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from fedplat import durable
from fedplat.metrics import MetricSums
from fedplat.params import Vector
from fedplat.spec.model import Precision
from fedplat.wire.messages import Timings, TrainReply
from fedplat_silo.spool import Finished, Order, Spool, in_blocks


def order(number: int = 1, weights: str = "a", spec: str = "b") -> Order:
    return Order(run="r-1", round=number, spec_hash=spec * 64, weights=weights * 64)


UPDATE = np.full(5, 0.1, dtype=np.float32)


def reply(number: int = 1) -> TrainReply:
    sums = MetricSums(counts={"examples": [3]}, totals={"loss": 0.1 + 0.2})
    return TrainReply(
        run="r-1", silo="a", round=number, step=7, weight=3, trained=sums, timings=Timings(training_s=1 / 3)
    )


def put(spool: Spool, number: int = 1, update: Vector = UPDATE, precision: Precision = Precision.FP32) -> Finished:
    return spool.put(order(number), reply(number), in_blocks(update, precision))


def content(finished: Finished) -> bytes:
    return finished.update.region.read(0, 1 << 30)


def test_the_same_update_comes_back(tmp_path: Path) -> None:
    stored = put(Spool(tmp_path))
    found = Spool(tmp_path).get(order())
    assert found == stored
    assert found.reply == reply()
    assert content(found) == UPDATE.tobytes()
    assert found.update.ref.size_bytes == 20
    for name in ("1.update", "1.buffer"):
        assert (tmp_path / "r-1" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "r-1").stat().st_mode & 0o777 == 0o700


def test_an_update_is_rounded_when_it_is_written(tmp_path: Path) -> None:
    update = np.random.default_rng(0).normal(size=(3 << 20) + 5).astype(np.float32)
    finished = put(Spool(tmp_path), update=update, precision=Precision.BF16)
    expected = torch.from_numpy(update).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    assert content(finished) == expected, "in blocks as in one piece"
    assert len(finished.update.ref.pieces) == 2
    weights = Spool(tmp_path).put_weights("r-1", update, Precision.BF16)
    assert weights.ref == finished.update.ref


@pytest.mark.parametrize("other", [order(2), order(weights="c"), order(spec="c")])
def test_another_order_has_another_update(tmp_path: Path, other: Order) -> None:
    spool = Spool(tmp_path)
    put(spool)
    assert spool.get(other) is None
    assert spool.get(order()) is not None


@pytest.mark.parametrize("name", ["1.update", "1.buffer"])
def test_damage_at_any_byte_is_found_and_the_update_dropped(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path)
    put(spool)
    files = {path: path.read_bytes() for path in (tmp_path / "r-1").iterdir()}
    path = tmp_path / "r-1" / name
    whole = files[path]
    damages: list[Callable[[int], bytes]] = [
        lambda i: whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :],
        lambda i: whole[:i],
    ]
    for damage in damages:
        for place in range(0, len(whole), 3 if len(whole) > 100 else 1):
            if place == 64 and damage is damages[0]:
                continue  # the line break after the hash carries nothing
            for file, data in files.items():
                file.write_bytes(data)
            path.write_bytes(damage(place))
            assert spool.get(order()) is None, place
            assert not list((tmp_path / "r-1").iterdir())


def test_a_header_without_its_bytes_is_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool)
    (tmp_path / "r-1" / "1.buffer").unlink()
    assert spool.get(order()) is None
    assert not list((tmp_path / "r-1").iterdir())


def test_rounds_that_are_over_go(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put_weights("r-1", UPDATE, Precision.FP32)
    for number in (1, 2, 10):
        put(spool, number)
    (tmp_path / "r-1" / "3.buffer").touch()  # killed before its header
    (tmp_path / "r-1" / ".3.update.abc.part").touch()
    spool.forget_before("r-1", 10)
    assert sorted(p.name for p in (tmp_path / "r-1").iterdir()) == ["10.buffer", "10.update"]
    spool.forget("r-1")
    assert not list(tmp_path.iterdir())
    spool.forget("r-1")
    spool.forget_before("r-1", 3)


class _Failing(durable.Filesystem):
    """The disk stops at the nth step."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")

    def write(self, fd: int, data: memoryview) -> int:
        self._step()
        return super().write(fd, data[:100])

    def fsync(self, fd: int) -> None:
        self._step()
        super().fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)


def test_a_crash_at_any_write_leaves_the_new_update_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The old one was for another order, and of no use."""
    seen = set()
    for steps in range(100):
        spool = Spool(tmp_path / str(steps))
        put(spool)
        failing = _Failing(steps)
        monkeypatch.setattr(durable, "filesystem", failing)
        with suppress(OSError):
            put(spool, update=UPDATE * 2)
        monkeypatch.undo()
        found = spool.get(order())
        seen.add(found and content(found))
        put(spool)
        assert len(list((tmp_path / str(steps) / "r-1").iterdir())) == 2
        if failing.left >= 0:
            break
    assert {None, (UPDATE * 2).tobytes()} <= seen
    assert found, "the last had no fault"
    assert caplog.text == "", "nothing was damaged"
