"""Finds installed tasks by name and says exactly which code they are. Needs no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedplat.reasons import Code, Reason
from fedplat_silo.data.errors import Refused

if TYPE_CHECKING:
    from fedplat_silo.tasks.base import Task

GROUP = "fedplat.tasks"


@dataclass(frozen=True)
class TaskIdentity:
    """Which code a task is: the version of its distribution and a SHA-256 over its package's Python files."""

    version: str
    sha256: str


def installed() -> tuple[str, ...]:
    """The names of all installed tasks, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def identity(name: str) -> TaskIdentity:
    """The task's code, without importing it. Refused with TASK_MISSING if it is not installed."""
    point = _find(name)
    version = point.dist.version if point.dist else ""
    return TaskIdentity(version, _hash_package(name, point.module.partition(".")[0]))


def own_code() -> str:
    """SHA-256 over fedplat's Python files at a silo: the trainer and the built-in tasks."""
    return _hash_package("fedplat", "fedplat_silo")


def load(name: str) -> type[Task[Any]]:
    """The task's class; imports torch. Refused with TASK_MISSING if it is not installed."""
    task: type[Task[Any]] = _find(name).load()
    return task


def _find(name: str) -> EntryPoint:
    for point in entry_points(group=GROUP, name=name):
        return point
    raise _missing(name, f"installed tasks: {', '.join(installed()) or 'none'}")


def _hash_package(name: str, package: str) -> str:
    spec = find_spec(package)
    if spec is None:
        raise _missing(name, f"its package {package!r} is not there")
    digest = hashlib.sha256(b"fedplat/task/1")
    for relative, path in _sources(spec.submodule_search_locations, spec.origin):
        for part in (relative.encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _sources(folders: list[str] | None, module: str | None) -> list[tuple[str, Path]]:
    if folders:
        found = [(path.relative_to(f).as_posix(), path) for f in map(Path, folders) for path in f.rglob("*.py")]
        return sorted(found)
    return [(Path(module).name, Path(module))] if module else []


def _missing(name: str, detail: str) -> Refused:
    return Refused(Reason.of(Code.TASK_MISSING, task=name), f"no task {name!r}: {detail}")
