"""Writes that survive a crash: a file holds its old content or its new content, never a part of one.

Everything goes through `filesystem`, so that a test can count the steps and fail any one of them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self, cast


class Filesystem:
    """The steps that change the disk."""

    def open(self, path: Path, mode: int) -> int:
        """Creates a file that does not exist yet and returns its descriptor."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        os.fchmod(fd, mode)  # the umask has no say
        return fd

    def reopen(self, path: Path, mode: int) -> int:
        """Opens a file for reading and writing, makes it if it is not there, and returns its descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT, mode)

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def write(self, fd: int, data: memoryview) -> int:
        """Writes some of `data` and returns how many bytes."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def start_writeback(self, fd: int) -> None:
        """Lets the disk begin with what was written, so that fsync finds little left to do. Promises nothing."""
        if _sync_file_range is not None:
            _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def mkdir(self, path: Path, mode: int) -> None:
        os.mkdir(path, mode)


filesystem = Filesystem()

_SYNC_FILE_RANGE_WRITE = 2
_WRITEBACK_BYTES = 32 << 20


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux has it, other systems need not
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return cast("Callable[[int, int, int, int], int]", function)


_sync_file_range = _find_sync_file_range()

_TEMPORARY = ".{name}.{unique}.part"


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces `path` by `data`; it is on disk when this returns. Raises OSError."""
    write_atomic_chunks(path, (data,), mode)


def write_atomic_chunks(path: Path, chunks: Iterable[bytes | memoryview], mode: int = 0o600) -> None:
    """Replaces `path` by the chunks in order; it is on disk when this returns. Raises OSError.

    Whatever `chunks` raises passes through, and `path` stays as it was.
    """
    with AtomicFile(path, mode) as file:
        for chunk in chunks:
            file.write(chunk)
        file.commit()


class AtomicFile:
    """A file that is written piece by piece and appears under its name only when it is whole. Methods raise OSError."""

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self._path = path
        self._temporary = path.with_name(_TEMPORARY.format(name=path.name, unique=secrets.token_hex(6)))
        self._fd = filesystem.open(self._temporary, mode)
        self._is_there = True
        self._new_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Removes what was not committed."""
        self._close()
        if self._is_there:
            with suppress(OSError):
                filesystem.unlink(self._temporary)

    def write(self, chunk: bytes | memoryview, at: int | None = None) -> None:
        """The next bytes, or those from `at` on."""
        if at is not None:
            os.lseek(self._fd, at, os.SEEK_SET)
        rest = memoryview(chunk).cast("B")
        self._new_bytes += len(rest)
        while rest:
            rest = rest[filesystem.write(self._fd, rest) :]
        if self._new_bytes >= _WRITEBACK_BYTES:
            filesystem.start_writeback(self._fd)
            self._new_bytes = 0

    def read(self, start: int, size_bytes: int) -> bytes:
        """What was written, from `start` on."""
        return os.pread(self._fd, size_bytes, start)

    def commit(self) -> None:
        """Replaces what was there; on disk when this returns."""
        self.sync()
        self.rename()

    def publish(self) -> None:
        """Replaces what was there. A kill cannot undo it; a power cut can, before `sync_files`."""
        self._close()
        filesystem.rename(self._temporary, self._path)
        self._is_there = False

    def sync(self) -> None:
        """What was written is on disk when this returns, under its temporary name."""
        filesystem.fsync(self._fd)
        self._close()

    def rename(self) -> None:
        """Gives a synced file its name; on disk when this returns."""
        filesystem.rename(self._temporary, self._path)
        self._is_there = False
        sync_folder(self._path.parent)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sync_files(*paths: Path) -> None:
    """Published files of one folder are on disk when this returns. Raises OSError."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            filesystem.fsync(fd)
        finally:
            os.close(fd)
    sync_folder(paths[0].parent)


def make_private_dir(path: Path) -> None:
    """Makes a folder, and its missing parents, with mode 0700. One that exists is left as it is."""
    if path.is_dir():
        return
    make_private_dir(path.parent)
    try:
        filesystem.mkdir(path, 0o700)
    except FileExistsError:  # another process was faster, or a file is in the way
        if not path.is_dir():
            raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Removes a file for good. One that is gone already is fine."""
    with suppress(FileNotFoundError):
        filesystem.unlink(path)
    with suppress(FileNotFoundError):  # also when the file is gone: an earlier call may have died in between
        sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Gives a file another name in its folder, for good. One that is gone already is fine."""
    with suppress(FileNotFoundError):
        filesystem.rename(source, target)
    with suppress(FileNotFoundError):
        sync_folder(target.parent)


def remove_leftovers(folder: Path) -> None:
    """Removes what writers that were killed left in `folder`; only for a folder that nobody else writes to."""
    for path in folder.glob(_TEMPORARY.format(name="*", unique="*")):
        filesystem.unlink(path)


def sha256_file(path: Path) -> str:
    """SHA-256 of the content, lower-case hex, in constant memory. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """The folder's entries are on disk when this returns. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        filesystem.fsync(fd)
    finally:
        os.close(fd)
