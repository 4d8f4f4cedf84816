"""A copy of a server: keys, database and checkpoints, all of one moment, also while it works.

The database is read in one transaction. The checkpoints that it points to are opened inside it, before anything is
copied: a run that goes on may remove them, but not take them away.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from fedplat import __version__
from fedplat.durable import make_private_dir
from fedplat.errors import ConflictError, NotFoundError, StoreError
from fedplat.home import ServerHome
from fedplat_server.backup.files import DATABASE, SETTINGS, BackupError, Copier, Manifest
from fedplat_server.checkpoints import CheckpointError, Checkpoints
from fedplat_server.settings import Settings
from fedplat_server.store import Run, open_store
from fedplat_server.store.copies import Snapshot, snapshot
from fedplat_server.transitions import is_final

_ATTEMPTS = 5
_HINT = "Name a new or empty folder that you can write to, on a disk with room."


@dataclass(frozen=True, kw_only=True)
class BackupReport:
    """What was written. `problems`: what the server had lost or damaged before, so that it is not in the backup."""

    folder: Path
    manifest: Manifest
    num_runs: int
    problems: tuple[str, ...]


def backup_server(home: ServerHome, target: Path) -> BackupReport:
    """Write a copy of the server, running or not, into `target`, a new or empty folder (0700, files 0600).

    It holds the server's secrets. Raises BackupError, StoreError, ConflictError, NotFoundError; then nothing is left.
    """
    home.check()
    if not (home.path / SETTINGS).exists():
        raise NotFoundError(f"there is no server in {home.path}", hint="Name its home with --home.")
    with _filling(target):
        return _write(home, Copier(target))


@contextmanager
def _filling(target: Path) -> Iterator[None]:
    try:
        make_private_dir(target)
        if any(target.iterdir()):
            raise ConflictError(f"{target} is not empty", hint=_HINT)
        target.chmod(0o700)
    except OSError as error:
        raise BackupError(f"no backup can be written to {target}: {error.strerror}", hint=_HINT) from error
    try:
        yield
    except BaseException as error:
        for path in target.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if isinstance(error, OSError):
            raise BackupError(f"the backup {target} cannot be written: {error}", hint=_HINT) from error
        raise


def _write(home: ServerHome, copier: Copier) -> BackupReport:
    for path in (home.path / SETTINGS, *home.ca.glob("*.pem"), *home.tls.glob("*.pem"), *home.keys.glob("*.pem")):
        with path.open("rb") as file:
            copier.copy(str(path.relative_to(home.path)), file)
    settings = Settings.remembered(home)
    with ExitStack() as opened:
        runs, facts, wanted, lost = _freeze(home, settings.database_url(home), copier, opened)
        problems = [*lost, *(problem for one in wanted if (problem := _copy_checkpoint(copier, one)))]
    problems += _log_problems(copier.folder / DATABASE)
    copier.note(DATABASE)
    manifest = Manifest.model_validate({**facts, "fedplat": __version__, "files": copier.files})
    manifest.write(copier.folder)
    return BackupReport(folder=copier.folder, manifest=manifest, num_runs=len(runs), problems=tuple(problems))


def _freeze(
    home: ServerHome, url: str, copier: Copier, opened: ExitStack
) -> tuple[Sequence[Run], dict[str, object], list[_Wanted], list[str]]:
    """Copy the database; say what its moment is, and which checkpoints belong to it."""
    for attempt in range(1, _ATTEMPTS + 1):
        with snapshot(url) as frozen:
            made_at, (seq, last_hash), runs = datetime.now(UTC), frozen.head(), frozen.runs()
            wanted, lost = _checkpoints(home, frozen, runs, opened)
            if lost and attempt < _ATTEMPTS:  # most likely a round was committed in between: look again
                continue
            frozen.copy_to(copier.folder / DATABASE)
            facts = {"made_at": made_at, "database": frozen.kind, "last_event": seq, "last_hash": last_hash}
            return runs, facts, wanted, lost
    raise AssertionError("the last attempt returns")


def _log_problems(database: Path) -> list[str]:
    store = open_store(f"sqlite:///{database}")
    try:
        store.events.verify()
    except StoreError as error:
        return [error.message]
    finally:
        store.close()
    return []


# -- checkpoints ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """A checkpoint of a committed round: the weights, and the manifest beside them."""

    run: Run
    number: int
    sha256: str
    paths: tuple[Path, Path]
    opened: tuple[BinaryIO, BinaryIO] | None


def _checkpoints(
    home: ServerHome, frozen: Snapshot, runs: Sequence[Run], opened: ExitStack
) -> tuple[list[_Wanted], list[str]]:
    """Those that are there, and in words those that must be and are not."""
    wanted: list[_Wanted] = []
    lost: list[str] = []
    for run in runs:
        committed = dict(frozen.committed(run.id))
        if run.weights_sha256 is not None:
            committed[run.rounds_committed] = run.weights_sha256
        for number, sha256 in sorted(committed.items()):
            found = _find(home, run, number, sha256, opened)
            if found is not None:
                wanted.append(found)
            elif number == run.rounds_committed:
                lost.append(f"run {run.id} has lost its checkpoint of round {number}")
    return wanted, lost


def _find(home: ServerHome, run: Run, number: int, sha256: str, opened: ExitStack) -> _Wanted | None:
    weights = home.checkpoints(run.id) / f"round-{number:07d}.safetensors"
    paths = weights, weights.with_suffix(".json")
    if is_final(run.state):  # nothing removes these, and all of all runs would be too many to hold open
        return _Wanted(run, number, sha256, paths, None) if all(path.exists() for path in paths) else None
    try:
        return _Wanted(run, number, sha256, paths, _open(paths, opened))
    except FileNotFoundError:
        return None


def _open(paths: tuple[Path, Path], opened: ExitStack) -> tuple[BinaryIO, BinaryIO]:
    weights, manifest = paths
    return opened.enter_context(weights.open("rb")), opened.enter_context(manifest.open("rb"))


def _copy_checkpoint(copier: Copier, wanted: _Wanted) -> str | None:
    """Copy it, and look whether the copy is good; returns what is wrong, and then keeps nothing of it."""
    names = [f"runs/{wanted.run.id}/checkpoints/{path.name}" for path in wanted.paths]
    with ExitStack() as mine:
        for name, file in zip(names, wanted.opened or _open(wanted.paths, mine), strict=True):
            copier.copy(name, file)
    folder = (copier.folder / names[0]).parent
    try:
        found = Checkpoints(folder, wanted.run.spec_hash).load(wanted.number).manifest.sha256
        problem = "is not the one that was committed" if found != wanted.sha256 else None
    except CheckpointError as error:
        problem = f"is no good: {error.message}"
    if problem is None:
        return None
    for name in names:
        copier.drop(name)
    return f"the checkpoint of round {wanted.number} of run {wanted.run.id} {problem}"
