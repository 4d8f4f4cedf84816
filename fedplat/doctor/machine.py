"""Checks of the machine that both sides have: disk, permissions, ports."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from fedplat import durable
from fedplat.doctor.checks import Finding, failed, ok, warning
from fedplat.home import Home

MIN_FREE_BYTES = 200 << 20
LOW_FREE_BYTES = 2 << 30
PROBE_BYTES = 4 << 20
SLOW_BYTES_PER_S = 5 << 20
SLOW_SYNC_S = 0.25
_NUM_SYNCS = 3
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp, see proc(5)


def check_home(home: Home) -> Finding:
    """Whether this user may work in it: files that another user leaves there, root too, stop its owner later."""
    home.check()
    owner = home.path.stat().st_uid
    if owner != os.geteuid():
        return failed(f"{home.path} belongs to user {owner}, and this is user {os.geteuid()}", "Run this as its owner.")
    return ok(str(home.path))


def check_space(folder: Path) -> Finding:
    """Room on the disk of a home."""
    free = shutil.disk_usage(folder).free
    said = f"{show_size(free)} free at {folder}"
    if free < MIN_FREE_BYTES:
        return failed(f"the disk is full: {said}", f"Make room: at least {show_size(MIN_FREE_BYTES)}, better more.")
    if free < LOW_FREE_BYTES:
        return warning(said, f"Make room: below {show_size(LOW_FREE_BYTES)} a few rounds of a large model may fill it.")
    return ok(said)


def check_speed(folder: Path) -> Finding:
    """How fast the disk takes what has to survive a power cut: the way all state is written."""
    probe = folder / "doctor-probe"
    try:
        begun = time.perf_counter()
        durable.write_atomic(probe, os.urandom(PROBE_BYTES))
        rate = PROBE_BYTES / (time.perf_counter() - begun)
        sync_s = min(_time_sync(probe) for _ in range(_NUM_SYNCS))
    finally:
        with suppress(OSError):
            durable.remove(probe)
    said = f"{show_size(rate)}/s written and synced, {1000 * sync_s:.0f} ms for a small file"
    if rate < SLOW_BYTES_PER_S or sync_s > SLOW_SYNC_S:
        return warning(
            f"the disk is slow: {said}",
            f"Every round waits for it. Use a local disk, with at least {show_size(SLOW_BYTES_PER_S)}/s and at most "
            f"{1000 * SLOW_SYNC_S:.0f} ms.",
        )
    return ok(said)


def _time_sync(path: Path) -> float:
    begun = time.perf_counter()
    durable.write_atomic(path, b"probe")
    return time.perf_counter() - begun


def check_private(home: Path, secrets: Iterable[Path]) -> Finding:
    """Whether the home's folders and these files (or all that is in these folders) are their owner's alone."""
    owner = home.stat().st_uid
    paths = sorted({path for each in (home, *secrets) for path in _within(each, deep=each != home)})
    foreign = [path for path in paths if path.lstat().st_uid != owner]
    if foreign:
        return failed(
            f"{_names(foreign, home)} belong to another user than the home",
            f"Whose are they? Then: chown -R {owner} {shlex.quote(str(home))}",
        )
    if exposed := [path for path in paths if stat.S_IMODE(path.lstat().st_mode) & 0o077]:
        fix = " ".join(shlex.quote(str(path)) for path in exposed[:3]) + (" ..." if len(exposed) > 3 else "")
        return failed(
            f"open to other users: {_names(exposed, home)}",
            f"chmod go= {fix}   If others may have read a key, replace it.",
        )
    return ok(f"{len(paths)} files and folders are their owner's alone")


def _within(path: Path, *, deep: bool) -> Iterator[Path]:
    """What is there now: a process may be at work, and rename what was seen a moment ago."""
    if path.is_symlink() or not path.exists():
        return
    yield path
    if deep and path.is_dir():
        for below in path.rglob("*"):
            if not below.is_symlink() and below.exists():
                yield below


def _names(paths: list[Path], home: Path) -> str:
    shown = [str(path.relative_to(home)) if path != home else str(home) for path in paths[:3]]
    return ", ".join(shown) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def holder_of(port: int) -> str:
    """Who listens on a TCP port of this machine, as far as this user may know."""
    inodes = set(_listening(port))
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(entry) in inodes:
                pid = entry.parts[2]
                return f"process {pid} ({Path('/proc', pid, 'comm').read_text().strip()})"
    return "another user's process" if inodes else "a process that cannot be seen from here"


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"


def resolve(host: str) -> list[str]:
    """The addresses of a host. Raises OSError."""
    return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})


def show_size(num_bytes: float) -> str:
    """For people."""
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
