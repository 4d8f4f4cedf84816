"""Writes that survive a crash: a file holds its old content or its new content, never a part of one.

Everything goes through `filesystem`, so that a test can count the steps and fail any one of them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class Filesystem:
    """The steps that change the disk."""

    def open(self, path: Path, mode: int) -> int:
        """Creates a file that does not exist yet and returns its descriptor."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        os.fchmod(fd, mode)  # the umask has no say
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        """Writes some of `data` and returns how many bytes."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def mkdir(self, path: Path, mode: int) -> None:
        os.mkdir(path, mode)


filesystem = Filesystem()

_TEMPORARY = ".{name}.{unique}.part"


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces `path` by `data`; it is on disk when this returns. Raises OSError."""
    write_atomic_chunks(path, (data,), mode)


def write_atomic_chunks(path: Path, chunks: Iterable[bytes | memoryview], mode: int = 0o600) -> None:
    """Replaces `path` by the chunks in order; it is on disk when this returns. Raises OSError.

    Whatever `chunks` raises passes through, and `path` stays as it was.
    """
    temporary = path.with_name(_TEMPORARY.format(name=path.name, unique=secrets.token_hex(6)))
    try:
        _write_new(temporary, chunks, mode)
        filesystem.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            filesystem.unlink(temporary)
        raise
    _sync_folder(path.parent)


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
    _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Removes a file for good. One that is gone already is fine."""
    with suppress(FileNotFoundError):
        filesystem.unlink(path)
    with suppress(FileNotFoundError):  # also when the file is gone: an earlier call may have died in between
        _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Removes what writers that were killed left in `folder`; only for a folder that nobody else writes to."""
    for path in folder.glob(_TEMPORARY.format(name="*", unique="*")):
        filesystem.unlink(path)


def sha256_file(path: Path) -> str:
    """SHA-256 of the content, lower-case hex, in constant memory. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_new(path: Path, chunks: Iterable[bytes | memoryview], mode: int) -> None:
    fd = filesystem.open(path, mode)
    try:
        for chunk in chunks:
            rest = memoryview(chunk).cast("B")
            while rest:
                rest = rest[filesystem.write(fd, rest) :]
        filesystem.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        filesystem.fsync(fd)
    finally:
        os.close(fd)
