"""What a check is, and what it may find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

TIMEOUT_S = 20.0


class Level(StrEnum):
    """How bad it is. `skipped`: a check that this one needs did not pass."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it (empty if it is fine)."""

    level: Level
    found: str
    todo: str = ""


def ok(found: str) -> Finding:
    """As it should be."""
    return Finding(Level.OK, found)


def warning(found: str, todo: str) -> Finding:
    """It works, but not well, or not for long."""
    return Finding(Level.WARNING, found, todo)


def failed(found: str, todo: str) -> Finding:
    """It does not work."""
    return Finding(Level.FAILED, found, todo)


@dataclass(frozen=True)
class Check:
    """`look` MUST change nothing that matters. A FedplatError or OSError that it raises is what it found. It is only
    asked if the checks that it `needs`, which come before it, have not failed; after `timeout_s` it is given up."""

    name: str
    look: Callable[[], Finding]
    needs: tuple[str, ...] = ()
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class Subject:
    """The server or a silo of this machine; its checks in their order."""

    title: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Asked:
    """What was typed. Without `server` and `silo` it is about whatever is on this machine. `data`: NAME=PATH; `gpus`:
    as 0,1; both, `spec` and `num_workers` are for silos."""

    root: Path
    server: bool = False
    silo: str | None = None
    spec: Path | None = None
    data: tuple[str, ...] = ()
    gpus: str = ""
    num_workers: int = 1
