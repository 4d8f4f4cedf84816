"""A process that dies by SIGKILL before a chosen write, be it SQLite's or that of `fedplat.durable`.

SQLite on Unix lets a test put functions of its own in the place of system calls (`xSetSystemCall` of its VFS).
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import signal
from pathlib import Path
from typing import Any

from fedplat import durable

_VOID, _INT, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
_CALLS: dict[bytes, tuple[Any, ...]] = {
    b"open": (_INT, _TEXT, _INT, _INT),
    b"write": (ctypes.c_ssize_t, _INT, _VOID, _SIZE),
    b"pwrite": (ctypes.c_ssize_t, _INT, _VOID, _SIZE, ctypes.c_int64),
    b"pwrite64": (ctypes.c_ssize_t, _INT, _VOID, _SIZE, ctypes.c_int64),
    b"ftruncate": (_INT, _INT, ctypes.c_int64),
    b"unlink": (_INT, _TEXT),
}


# What lies between the names and the last two calls is not used here.
_FIELDS: Any = [
    *[("version", _INT), ("file_size", _INT), ("max_path", _INT), ("next", _VOID), ("name", _TEXT), ("data", _VOID)],
    *[(f"method_{number}", _VOID) for number in range(13)],
    ("set_system_call", ctypes.CFUNCTYPE(_INT, _VOID, _TEXT, _VOID)),
    ("get_system_call", ctypes.CFUNCTYPE(_VOID, _VOID, _TEXT)),
]


class _Vfs(ctypes.Structure):
    """sqlite3_vfs, version 3."""

    _fields_ = _FIELDS


class Death:
    """Counts the writes of this process from now on, and kills it before number `at`."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.num_writes = 0
        self._kept: list[object] = []
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        self._vfs = library.sqlite3_vfs_find(None)
        for name, signature in _CALLS.items():
            self._watch(name, ctypes.CFUNCTYPE(*signature, use_errno=True))
        durable.filesystem = _Dying(self)

    def step(self) -> None:
        self.num_writes += 1
        if self.num_writes > self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _watch(self, name: bytes, kind: Any) -> None:
        address = self._vfs.contents.get_system_call(self._vfs, name)
        if not address:
            return  # not on this system
        original = kind(address)

        def call(*arguments: Any) -> Any:
            self.step()
            ctypes.set_errno(0)
            return original(*arguments)

        replacement = kind(call)
        self._kept += [original, replacement]
        assert self._vfs.contents.set_system_call(self._vfs, name, ctypes.cast(replacement, _VOID)) == 0


class _Dying(durable.Filesystem):
    def __init__(self, death: Death) -> None:
        self._death = death

    def open(self, path: Path, mode: int) -> int:
        self._death.step()
        return super().open(path, mode)

    def reopen(self, path: Path, mode: int) -> int:
        self._death.step()
        return super().reopen(path, mode)

    def write(self, fd: int, data: memoryview) -> int:
        self._death.step()
        return super().write(fd, data)

    def rename(self, source: Path, target: Path) -> None:
        self._death.step()
        super().rename(source, target)
