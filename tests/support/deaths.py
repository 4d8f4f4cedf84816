"""Lives of a server with one death each: before every write of a file in turn, or inside every transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, Self, TypeVar

import pytest
from sqlalchemy import Connection

from fedplat import bufferfiles, durable
from fedplat_server.store.session import Database
from tests.support.crashes import Crash, CrashingFilesystem


class Mortal(Protocol):
    """A server's folder; `live` is one process in it, which ends with the run or with a Crash."""

    def copy(self, name: str) -> Self: ...

    def live(self) -> str: ...


M = TypeVar("M", bound=Mortal)


def at_every_write(world: M, patch: pytest.MonkeyPatch, *, power_loss: bool, every: int = 1) -> Iterator[tuple[M, str]]:
    """What each death has left, and before which step of the file system it came; every k-th step only if so asked."""
    at = 0
    while True:
        tried, filesystem = world.copy(f"w{at}"), CrashingFilesystem(at, power_loss=power_loss)
        with patch.context() as context:
            for module in (durable, bufferfiles):
                context.setattr(module, "filesystem", filesystem)
            if _lives(tried):
                return
        yield tried, filesystem.steps[at]
        at += every


def at_every_transaction(world: M, patch: pytest.MonkeyPatch) -> Iterator[M]:
    """What each death has left."""
    at = 0
    while True:
        tried = world.copy(f"t{at}")
        with patch.context() as context, _crash_before_commit(context, at) as seen:
            if _lives(tried):
                return
        assert seen[0] == at + 1
        yield tried
        at += 1


def _lives(world: Mortal) -> bool:
    try:
        world.live()
    except Crash:
        return False
    return True


@contextmanager
def _crash_before_commit(patch: pytest.MonkeyPatch, at: int) -> Iterator[list[int]]:
    """Die inside the `at`-th write transaction, before it commits; how many there were."""
    seen = [0]
    real = Database.write

    @contextmanager
    def write(self: Database) -> Iterator[Connection]:
        with real(self) as connection:
            yield connection
            seen[0] += 1
            if seen[0] > at:
                raise Crash

    patch.setattr(Database, "write", write)
    yield seen
