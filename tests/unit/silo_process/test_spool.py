from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from fedplat import durable
from fedplat.metrics import MetricSums
from fedplat.wire.messages import Timings, TrainReply
from fedplat_silo.spool import Finished, Order, Spool


def order(number: int = 1, weights: str = "a", spec: str = "b") -> Order:
    return Order(run="r-1", round=number, spec_hash=spec * 64, weights=weights * 64)


def finished(number: int = 1, value: float = 0.1) -> Finished:
    sums = MetricSums(counts={"examples": [3]}, totals={"loss": 0.1 + 0.2})
    reply = TrainReply(
        run="r-1", silo="a", round=number, step=7, weight=3, trained=sums, timings=Timings(training_s=1 / 3)
    )
    return Finished(reply, np.full(5, value, dtype=np.float32))


def test_the_same_update_comes_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(order(), finished())
    found = Spool(tmp_path).get(order())
    assert found is not None
    assert found.reply == finished().reply
    assert found.update.tobytes() == finished().update.tobytes()
    assert (tmp_path / "r-1" / "1.update").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "r-1").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("other", [order(2), order(weights="c"), order(spec="c")])
def test_another_order_has_another_update(tmp_path: Path, other: Order) -> None:
    spool = Spool(tmp_path)
    spool.put(order(), finished())
    assert spool.get(other) is None


def test_damage_at_any_byte_is_found_and_the_file_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(order(), finished())
    path = tmp_path / "r-1" / "1.update"
    whole = path.read_bytes()
    damages: list[Callable[[int], bytes]] = [
        lambda i: whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :],
        lambda i: whole[:i],
    ]
    for damage in damages:
        for place in range(0, len(whole), 3):
            if place == 64 and damage is damages[0]:
                continue  # the line break after the hash carries nothing
            path.write_bytes(damage(place))
            assert spool.get(order()) is None, place
            assert not path.exists()


def test_rounds_that_are_over_go(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in (1, 2, 10):
        spool.put(order(number), finished(number))
    (tmp_path / "r-1" / ".3.update.abc.part").touch()
    spool.forget_before("r-1", 10)
    assert [p.name for p in (tmp_path / "r-1").iterdir()] == ["10.update"]
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


def test_a_crash_at_any_write_leaves_the_old_update_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = finished(value=0.1), finished(value=0.2)
    seen = set()
    for steps in range(100):
        spool = Spool(tmp_path / str(steps))
        spool.put(order(), old)
        failing = _Failing(steps)
        monkeypatch.setattr(durable, "filesystem", failing)
        with suppress(OSError):
            spool.put(order(), new)
        monkeypatch.undo()
        found = spool.get(order())
        assert found is not None
        seen.add(float(found.update[0]))
        assert len(list((tmp_path / str(steps) / "r-1").iterdir())) == 1
        if failing.left >= 0:
            break
    assert len(seen) == 2, "both occur"
