"""Where a server and a silo keep their state: private folders that one process at a time works in."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shlex
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedplat.durable import make_private_dir, write_atomic
from fedplat.errors import HomeError, HomeLockedError
from fedplat.names import check_run_id, check_silo_name

MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7) has 108, one of them the final NUL
_MACHINE_ID = Path("/etc/machine-id")


def fedplat_home(override: str | None = None) -> Path:
    """The root of all homes: `override`, else $FEDPLAT_HOME, else ~/.fedplat."""
    chosen = override or os.environ.get("FEDPLAT_HOME") or "~/.fedplat"
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError as error:
        raise HomeError(f"{chosen} cannot be resolved: {error}", hint="Set FEDPLAT_HOME to a folder.") from error


class Home(ABC):
    """A folder with mode 0700 and a lock."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """The folder itself."""

    @abstractmethod
    def folders(self) -> tuple[Path, ...]:
        """The folders that are always there, parents first."""

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    def create(self) -> None:
        """Makes what is missing. Raises HomeError where it can't, or where others could look in."""
        try:
            for folder in (self.path, *self.folders()):
                make_private_dir(folder)
        except OSError as error:
            raise HomeError(
                f"{self.path} cannot be created: {error.strerror}", hint="Set FEDPLAT_HOME to a folder of your own."
            ) from error
        self.check()

    def check(self) -> None:
        """Raises HomeError if the home is missing or open to other users."""
        try:
            mode = self.path.stat().st_mode
        except OSError as error:
            raise HomeError(f"{self.path} cannot be used: {error.strerror}", hint="Check FEDPLAT_HOME.") from error
        if not stat.S_ISDIR(mode):
            raise HomeError(f"{self.path} is not a folder", hint="Check FEDPLAT_HOME.")
        if mode & 0o077:
            raise HomeError(
                f"{self.path} is open to other users (mode {stat.S_IMODE(mode):04o}) and holds secrets",
                hint=f"Run: chmod 700 {shlex.quote(str(self.path))}",
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the home for this process; the kernel lets go when the process ends, however it ends.

        Raises HomeLockedError if another process holds it.
        """
        self.check()
        fd = self._open_lock()
        try:
            self._take(fd)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(fd)

    def _open_lock(self) -> int:
        try:
            return os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise HomeError(
                f"{self.lock_file} cannot be opened: {error.strerror}",
                hint="The home must be on a disk that this user can write to.",
            ) from error

    def _take(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise HomeLockedError(
                f"{self.path} is in use by another process (pid {holder})",
                hint="Stop that process first, or set FEDPLAT_HOME to another folder.",
            ) from None
        except OSError as error:
            raise HomeError(
                f"{self.lock_file} cannot be locked: {error.strerror}",
                hint="The home must be on a file system that has flock, best a local disk.",
            ) from error


@dataclass(frozen=True)
class ServerHome(Home):
    """Paths of the server; `root` is what `fedplat_home` returns."""

    root: Path

    @property
    def path(self) -> Path:
        return self.root / "server"

    def folders(self) -> tuple[Path, ...]:
        return self.ca, self.tls, self.keys, self.runs

    def create(self) -> None:
        super().create()
        socket_path(self.admin_socket)

    @property
    def db(self) -> Path:
        return self.path / "fedplat.db"

    @property
    def ca(self) -> Path:
        return self.path / "ca"

    @property
    def tls(self) -> Path:
        return self.path / "tls"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def admin_socket(self) -> Path:
        return self.path / "admin.sock"

    def run(self, run: str) -> Path:
        return self.runs / check_run_id(run)

    def checkpoints(self, run: str) -> Path:
        return self.run(run) / "checkpoints"

    def staging(self, run: str) -> Path:
        return self.run(run) / "staging"


@dataclass(frozen=True)
class SiloHome(Home):
    """Paths of one silo; `root` is what `fedplat_home` returns."""

    root: Path
    name: str

    def __post_init__(self) -> None:
        check_silo_name(self.name)

    @property
    def path(self) -> Path:
        return self.root / "silos" / self.name

    def folders(self) -> tuple[Path, ...]:
        return self.identity, self.spool, self.runs

    @property
    def identity(self) -> Path:
        return self.path / "identity"

    @property
    def key(self) -> Path:
        return self.identity / "key.pem"

    @property
    def ca_certificate(self) -> Path:
        return self.identity / "ca.pem"

    @property
    def peers(self) -> Path:
        return self.identity / "peers.json"

    @property
    def policy(self) -> Path:
        return self.path / "policy.toml"

    @property
    def datasets(self) -> Path:
        return self.path / "datasets.toml"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.db"

    @property
    def log(self) -> Path:
        return self.path / "silo.log"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def run(self, run: str) -> Path:
        return self.runs / check_run_id(run)


def socket_path(path: Path) -> Path:
    """Returns the path. Raises HomeError if it is too long for a Unix socket."""
    size_bytes = len(os.fsencode(path))
    if size_bytes > MAX_SOCKET_PATH_BYTES:
        raise HomeError(
            f"{path} is too long for a Unix socket: {size_bytes} bytes of at most {MAX_SOCKET_PATH_BYTES}",
            hint="Set FEDPLAT_HOME to a shorter path, for example /var/lib/fedplat.",
        )
    return path


def home_id(home: Home) -> str:
    """A name for this home on this disk of this machine, hex; a copy of the home has another. Needs the lock."""
    path = home.path / "home-id"
    if not path.exists():
        write_atomic(path, secrets.token_hex(16).encode())
    fd = home._open_lock()
    try:
        place = os.fstat(fd)
    finally:
        os.close(fd)
    machine = _MACHINE_ID.read_text().strip() if _MACHINE_ID.exists() else ""
    parts = "fedplat/1/home", path.read_text(errors="replace"), str(place.st_dev), str(place.st_ino), machine
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def next_boot(home: Home) -> int:
    """Counts this start, on disk before it returns: 1, 2, ... Needs the lock. Raises HomeError."""
    path = home.path / "boot"
    text = path.read_text(errors="replace") if path.exists() else "0"
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise HomeError(
            f"{path} is damaged: it should hold one number",
            hint="Write a number into it that is higher than any start this home has had.",
        )
    boot = int(text) + 1
    write_atomic(path, str(boot).encode())
    return boot
