"""Which runs this silo has joined, on disk: `spec.json` while a run lives, its hash in `ended` for ever after."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from fedplat.canonical import sha256_hex
from fedplat.durable import make_private_dir, remove, remove_leftovers, write_atomic
from fedplat.home import SiloHome
from fedplat.spec import RunSpec
from fedplat_silo.trainer.plan import CHECKPOINT

_SPEC = "spec.json"
_ENDED = "ended"
# What outlives a run: which spec it was, and the parameters that belong to this silo alone.
_KEPT = (_ENDED, "local-*.safetensors")


def live_runs(home: SiloHome) -> frozenset[str]:
    """The runs that were joined and, as far as this silo knows, go on."""
    return frozenset(path.parent.name for path in home.runs.glob(f"*/{_SPEC}"))


def known_hash(home: SiloHome, run: str) -> str | None:
    """The spec's hash by which this silo knows a run; None if it has never joined it."""
    folder = home.run(run)
    if (folder / _SPEC).exists():
        return sha256_hex((folder / _SPEC).read_bytes())
    return (folder / _ENDED).read_text() if (folder / _ENDED).exists() else None


def load_run(home: SiloHome, run: str) -> RunSpec:
    """The spec of a run that goes on. Raises OSError, ValueError."""
    return RunSpec.model_validate_json((home.run(run) / _SPEC).read_bytes())


def open_run(home: SiloHome, run: str) -> Path:
    """The run's folder, private to this user."""
    make_private_dir(home.run(run))
    return home.run(run)


def remember_run(home: SiloHome, run: str, spec: RunSpec) -> None:
    """The silo has joined: on disk when this returns."""
    write_atomic(open_run(home, run) / _SPEC, spec.canonical().encode())


def forget_checkpoint(home: SiloHome, run: str) -> None:
    """The round's update is finished: how far its training was does not matter any more."""
    shutil.rmtree(home.run(run) / CHECKPOINT, ignore_errors=True)


def tidy(home: SiloHome) -> None:
    """Removes what killed processes have left: parts of files, and folders of runs that were never quite joined.
    For the start, when nobody else writes."""
    live = live_runs(home)
    for folder in (*home.runs.glob("*/"), *home.spool.glob("*/")):
        if folder.name in live or (folder / _ENDED).exists():
            remove_leftovers(folder)
        else:
            shutil.rmtree(folder)


def retire_run(home: SiloHome, run: str, spec_hash: str) -> None:
    """The run is over: keeps its hash and the local parameters, removes the rest; the spec last, so that the server
    is asked about this run again if the process ends on the way."""
    folder = open_run(home, run)
    write_atomic(folder / _ENDED, spec_hash.encode())
    for path in _others(folder):
        shutil.rmtree(path) if path.is_dir() else remove(path)
    remove(folder / _SPEC)


def _others(folder: Path) -> Iterator[Path]:
    return (path for path in list(folder.iterdir()) if not any(map(path.match, (*_KEPT, _SPEC))))
