from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fedplat import durable

OLD, NEW = b"old" * 1000, b"new" * 2000


class Crash(BaseException):
    """The process ends here: nothing after it happens, not even cleaning up."""


class CrashingFilesystem(durable.Filesystem):
    """Dies before step `at`; when that is a write, half of it reached the disk."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.steps: list[str] = []

    def _step(self, name: str) -> bool:
        self.steps.append(name)
        return len(self.steps) > self.at

    def open(self, path: Path, mode: int) -> int:
        if self._step("open"):
            raise Crash
        return super().open(path, mode)

    def write(self, fd: int, data: memoryview) -> int:
        if self._step("write"):
            os.write(fd, data[: len(data) // 2])
            raise Crash
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        if self._step("fsync folder" if folder else "fsync file"):
            raise Crash
        super().fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        if self._step("rename"):
            raise Crash
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        if self._step("unlink"):
            raise Crash
        super().unlink(path)


def crash_everywhere(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> Iterator[list[str]]:
    """Runs `act` with a crash at step 0, 1, 2, ... until it gets through; yields the steps after each."""
    for at in range(100):
        filesystem = CrashingFilesystem(at)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "filesystem", filesystem)
            with suppress(Crash):
                act()
        yield filesystem.steps[: at + 1]
        if len(filesystem.steps) <= at:
            return


def test_a_crash_at_any_step_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    durable.write_atomic(path, OLD)
    chunks = NEW[:100], memoryview(NEW)[100:]
    for steps in crash_everywhere(monkeypatch, lambda: durable.write_atomic_chunks(path, chunks)):
        renamed = steps[-1] == "fsync folder"
        assert path.read_bytes() == (NEW if renamed else OLD)
    assert steps == ["open", "write", "write", "fsync file", "rename", "fsync folder"]


def test_leftovers_of_a_crash_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    durable.write_atomic(path, OLD)
    monkeypatch.setattr(durable, "filesystem", CrashingFilesystem(at=1))
    with pytest.raises(Crash):
        durable.write_atomic(path, NEW)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2
    durable.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    durable.write_atomic(path, OLD)

    class Full(durable.Filesystem):
        def fsync(self, fd: int) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "filesystem", Full())
    with pytest.raises(OSError, match="No space"):
        durable.write_atomic(path, NEW)
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_in_the_chunks_leaves_the_old_file(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("the source broke")

    path = tmp_path / "file"
    durable.write_atomic(path, OLD)
    with pytest.raises(ValueError, match="source broke"):
        durable.write_atomic_chunks(path, chunks())
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(durable.Filesystem):
        def write(self, fd: int, data: memoryview) -> int:
            return super().write(fd, data[:7])

    monkeypatch.setattr(durable, "filesystem", Short())
    durable.write_atomic(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


def test_a_file_written_in_any_order_appears_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    durable.write_atomic(path, OLD)

    def act() -> None:
        with durable.AtomicFile(path) as file:
            file.write(NEW[:10])
            file.write(NEW[50:], at=50)
            file.write(NEW[10:50], at=10)
            assert file.read(5, 50) == NEW[5:55]
            file.commit()

    for steps in crash_everywhere(monkeypatch, act):
        assert path.read_bytes() == (NEW if steps[-1] == "fsync folder" else OLD)
    assert steps == ["open", "write", "write", "write", "fsync file", "rename", "fsync folder"]


def test_what_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write_atomic(path, OLD)
    with durable.AtomicFile(path) as file:
        file.write(NEW)
    with durable.AtomicFile(path) as file:
        file.write(NEW)
        file.sync()
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_reopened_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for part, length in ((b"abc", 0), (b"de", 2)):
        fd = durable.filesystem.reopen(path, 0o600)
        assert os.lseek(fd, 0, os.SEEK_END) == (3 if length else 0)
        durable.filesystem.truncate(fd, length)
        os.lseek(fd, length, os.SEEK_SET)
        assert durable.filesystem.write(fd, memoryview(part)) == len(part)
        os.close(fd)
    assert path.read_bytes() == b"abde"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_is_exact_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        durable.write_atomic(tmp_path / "file", b"", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_make_private_dir_makes_private_parents_too(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        durable.make_private_dir(tmp_path / "a" / "b")
        durable.make_private_dir(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_make_private_dir_fails_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError):
        durable.make_private_dir(tmp_path / "a")


def test_remove_is_durable_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    durable.write_atomic(path, OLD)
    for steps in crash_everywhere(monkeypatch, lambda: durable.remove(path)):
        assert path.exists() == (steps == ["unlink"])
    assert steps == ["unlink", "fsync folder"]
    durable.remove(tmp_path / "no" / "such" / "file")


def test_sha256_file(tmp_path: Path) -> None:
    durable.write_atomic(tmp_path / "file", NEW * 100)
    assert durable.sha256_file(tmp_path / "file") == hashlib.sha256(NEW * 100).hexdigest()
