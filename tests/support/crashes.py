"""A file system that dies before any step, as a killed process or as a machine that loses power."""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from fedplat import durable


class Crash(BaseException):
    """The process is dead. Not an Exception: nothing may handle it."""


@dataclass
class _Rename:
    folder: Path
    source: Path
    target: Path
    old: bytes | None


class CrashingFilesystem(durable.Filesystem):
    """Dies before step `at`. With `power_loss`, what was not synced by then is lost: the second half of a file (zeros
    are there instead), and renames and removals in folders."""

    def __init__(self, at: int, *, power_loss: bool) -> None:
        self.at = at
        self.power_loss = power_loss
        self.steps: list[str] = []
        self.has_died = False
        self._unsynced_files: set[Path] = set()
        self._unsynced_names: list[_Rename] = []
        # A silo's disk works on an update while the update is sent: one step at a time, as a disk does.
        self._lock = threading.RLock()

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if len(self.steps) > self.at:
            self._die()

    def _die(self) -> None:
        first, self.has_died = not self.has_died, True
        if self.power_loss and first:
            for path in self._unsynced_files:
                if path.exists():
                    size = path.stat().st_size
                    os.truncate(path, size // 2)
                    os.truncate(path, size)
            for change in reversed(self._unsynced_names):
                self._undo(change)
        raise Crash

    def _undo(self, change: _Rename) -> None:
        if change.target != change.source and change.target.exists():
            os.rename(change.target, change.source)
        if change.old is not None:
            change.target.write_bytes(change.old)

    def open(self, path: Path, mode: int) -> int:
        with self._lock:
            self._step(f"open {path.name}")
            return super().open(path, mode)

    def reopen(self, path: Path, mode: int) -> int:
        with self._lock:
            self._step(f"reopen {path.name}")
            return super().reopen(path, mode)

    def truncate(self, fd: int, size_bytes: int) -> None:
        with self._lock:
            self._step("truncate")
            super().truncate(fd, size_bytes)
            self._unsynced_files.add(_path_of(fd))

    def write(self, fd: int, data: memoryview) -> int:
        with self._lock:
            self._step("write")
            self._unsynced_files.add(_path_of(fd))
            return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        with self._lock:
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
            self._step("fsync folder" if is_folder else "fsync file")
            super().fsync(fd)
            if is_folder:
                folder = _path_of(fd).resolve()
                self._unsynced_names = [c for c in self._unsynced_names if c.folder.resolve() != folder]
            else:
                self._unsynced_files.discard(_path_of(fd))

    def rename(self, source: Path, target: Path) -> None:
        with self._lock:
            self._step(f"rename {target.name}")
            old = target.read_bytes() if target.exists() else None
            super().rename(source, target)
            if source.resolve() in self._unsynced_files:
                self._unsynced_files.remove(source.resolve())
                self._unsynced_files.add(target.resolve())
            self._unsynced_names.append(_Rename(target.parent, source, target, old))

    def unlink(self, path: Path) -> None:
        with self._lock:
            self._step(f"unlink {path.name}")
            old = path.read_bytes() if path.exists() else None
            super().unlink(path)
            self._unsynced_names.append(_Rename(path.parent, path, path, old))

    def mkdir(self, path: Path, mode: int) -> None:
        with self._lock:
            self._step(f"mkdir {path.name}")
            super().mkdir(path, mode)


def _path_of(fd: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{fd}"))
