"""What other processes may ask a silo's home: whether its process runs, what it does, whether it is paused."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedplat.durable import remove, write_atomic
from fedplat.errors import HomeLockedError, NotFoundError, WireError
from fedplat.home import SiloHome
from fedplat.wire.http import Progress


class Status(BaseModel):
    """status.json. Times are seconds since 1970, UTC; `since`: when the connection was last made or lost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    silo: str
    server: str
    pid: int
    started_at: float
    connected: bool
    since: float
    runs: tuple[Progress, ...] = ()


def status_file(home: SiloHome) -> Path:
    return home.path / "status.json"


def write_status(home: SiloHome, status: Status) -> None:
    """Readers see the old file or the new one. It need not outlive a crash, so nothing waits for the disk."""
    temporary = status_file(home).with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(status.model_dump_json())
    temporary.replace(status_file(home))


def read_status(home: SiloHome) -> Status | None:
    """What the silo's process does now; None if there is none."""
    try:
        with home.lock():
            return None
    except HomeLockedError:
        pass
    with suppress(OSError, ValidationError):
        return Status.model_validate_json(status_file(home).read_bytes())
    return None


def is_paused(home: SiloHome) -> bool:
    """Whether `fedplat client pause` is in force."""
    return _pause_file(home).exists()


def set_paused(home: SiloHome, paused: bool) -> None:
    """From the next message on; a round under way is finished."""
    if paused:
        write_atomic(_pause_file(home), b"")
    else:
        remove(_pause_file(home))


def silo_home(root: Path, name: str | None) -> SiloHome:
    """The home of the silo of that name, by default of the only one. Raises NotFoundError."""
    found = sorted(path.name for path in (root / "silos").glob("*") if path.is_dir())
    if name is None and len(found) == 1:
        name = found[0]
    if name is None:
        known = f"there are {', '.join(found)}" if found else "there is none"
        raise NotFoundError(f"which silo? In {root} {known}", hint="Name it: --silo NAME")
    with suppress(WireError):
        if name in found:
            return SiloHome(root, name)
    raise NotFoundError(f"there is no silo {name[:80]!r} in {root}", hint=f"There are: {', '.join(found) or 'none'}.")


def _pause_file(home: SiloHome) -> Path:
    return home.path / "paused"
