"""A backup becomes a server again: in an empty home, all of it or nothing.

Silos may have moved on since the backup was made, and what they have spent and seen cannot be taken back. So no run is
rewound: every unfinished one is closed as it stands, and goes on as a child run with steps of its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedplat.canonical import canonical_json
from fedplat.durable import filesystem, make_private_dir, remove, write_atomic
from fedplat.errors import ConflictError, HomeError
from fedplat.home import ServerHome
from fedplat_server.backup.files import DATABASE, SETTINGS, BackupError, Copier, Manifest, read_backup
from fedplat_server.settings import Settings
from fedplat_server.store import open_store
from fedplat_server.store.copies import filled
from fedplat_server.transitions import RunState

MARK = "restored.json"


@dataclass(frozen=True, kw_only=True)
class RestoreReport:
    """What was restored where. `closed_runs` had not ended when the backup was made."""

    home: ServerHome
    restore_id: str
    made_at: datetime
    closed_runs: tuple[str, ...]
    num_cancelled_invites: int


def restore_server(source: Path, home: ServerHome, database: str | None = None) -> RestoreReport:
    """Make the server of the backup in `source` anew in an empty home, with SQLite or in an empty `database`.

    The home gets a file `restored.json` with the restore's id and time. Raises BackupError before anything is written
    if the backup is not whole; ConflictError, HomeError, StoreError.
    """
    manifest = read_backup(source)
    if manifest.database == "postgresql" and database is None:
        raise ConflictError(
            f"the server of the backup {source} used PostgreSQL",
            hint="Name an empty database: --database postgresql://USER:PASSWORD@HOST/DATABASE",
        )
    if home.path.exists() and (not home.path.is_dir() or any(home.path.iterdir())):
        raise ConflictError(f"{home.path} is not empty", hint="Restore into a new home: --home NEW")
    with _new_home(home) as part:
        _copy(source, manifest, part)
        report = _close_runs(part, home, manifest)
        _remember(part, report, database)
        with ExitStack() as stack:
            if database is not None:
                stack.enter_context(filled(database, part / DATABASE))
                remove(part / DATABASE)
            _place(part, home)
    return report


@contextmanager
def _new_home(home: ServerHome) -> Iterator[Path]:
    """A folder beside the home, to become it. If the block fails, neither is there."""
    part = home.path.with_name(f".{home.path.name}.{secrets.token_hex(6)}.part")
    try:
        make_private_dir(part)
        yield part
    except BaseException as error:
        if not part.exists() and (home.path / MARK).exists():  # it was in place, but its database was not filled
            filesystem.rename(home.path, part)
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise HomeError(f"{home.path} cannot be written: {error}", hint="Is there room on the disk?") from error
        raise


def _copy(source: Path, manifest: Manifest, part: Path) -> None:
    copier = Copier(part)
    for name, facts in manifest.files.items():
        with (source / name).open("rb") as file:
            copier.copy(name, file)
        if copier.files[name] != facts:
            raise BackupError(f"the backup {source} changes while it is read: {name}", hint="Restore from a copy.")


def _close_runs(part: Path, home: ServerHome, manifest: Manifest) -> RestoreReport:
    store = open_store(f"sqlite:///{part / DATABASE}")
    try:
        when = manifest.made_at.isoformat(sep=" ", timespec="minutes")
        open_runs = [run.id for run in store.runs.unfinished()]
        for run_id in open_runs:
            store.runs.set_state(
                run_id=run_id,
                state=RunState.STOPPED,
                reason=f"the server was restored from its backup of {when}, and silos may have moved on since; "
                f"continue with: fedplat run resume {run_id}",
                reason_code="restored",
                actor="restore",
            )
        for run in store.runs.list():
            if run.weights_path is not None:
                path = home.checkpoints(run.id) / Path(run.weights_path).name
                store.runs.move_weights(run_id=run.id, weights_path=str(path))
        num_cancelled = store.silos.cancel_invites()
        restore_id = secrets.token_hex(16)
        detail = {"restore_id": restore_id, "made_at": manifest.made_at.isoformat(), "runs": open_runs}
        store.events.append(kind="server.restored", actor="restore", detail=detail)
    finally:
        store.close()
    return RestoreReport(
        home=home,
        restore_id=restore_id,
        made_at=manifest.made_at,
        closed_runs=tuple(open_runs),
        num_cancelled_invites=num_cancelled,
    )


def _remember(part: Path, report: RestoreReport, database: str | None) -> None:
    old = Settings.model_validate_json((part / SETTINGS).read_bytes())
    settings = old.model_copy(update={"database": database or ""})
    write_atomic(part / SETTINGS, settings.model_dump_json(indent=2).encode())
    mark = {"restore_id": report.restore_id, "restored_at": datetime.now(UTC).isoformat()}
    write_atomic(part / MARK, canonical_json(mark | {"made_at": report.made_at.isoformat()}).encode())


def _place(part: Path, home: ServerHome) -> None:
    try:
        filesystem.rename(part, home.path)
    except OSError as error:
        raise HomeError(f"{home.path} cannot be made: {error.strerror}", hint="Is a server starting there?") from error
    folder = os.open(home.path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        filesystem.fsync(folder)
    finally:
        os.close(folder)
