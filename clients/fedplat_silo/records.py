"""Which runs this silo has joined, on disk: `spec.json` while a run lives; for ever after it is `past.json`, and its
hash is in `ended`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from fedplat.canonical import canonical_json, sha256_hex
from fedplat.durable import make_private_dir, move, remove, remove_leftovers, write_atomic
from fedplat.home import SiloHome
from fedplat.metrics import MetricSums
from fedplat.spec import RunSpec
from fedplat.wire.terms import Shape
from fedplat_silo.masker import STATE, forget_secrets
from fedplat_silo.trainer.plan import CHECKPOINT

_SPEC = "spec.json"
_ENDED = "ended"
_PAST = "past.json"
_SHAPE = "shape.json"
# What outlives a run: its spec, the parameters that belong to this silo alone, and which masked steps were.
_KEPT = (_ENDED, _PAST, "local-*.safetensors", STATE)


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


def recall_run(home: SiloHome, run: str) -> RunSpec:
    """The spec of a run that goes on, or is over. Raises OSError, ValueError."""
    path = home.run(run) / _SPEC
    return RunSpec.model_validate_json((path if path.exists() else path.with_name(_PAST)).read_bytes())


def open_run(home: SiloHome, run: str) -> Path:
    """The run's folder, private to this user."""
    make_private_dir(home.run(run))
    return home.run(run)


def remember_run(home: SiloHome, run: str, spec: RunSpec) -> None:
    """The silo has joined: on disk when this returns."""
    write_atomic(open_run(home, run) / _SPEC, spec.canonical().encode())


def remember_shape(home: SiloHome, run: str, shape: Shape) -> None:
    """What this silo's answers are made of, so that a finished one can be sent again without its workers."""
    kept = {"layout": shape.layout, "size": shape.size, "empty_sums": shape.empty_sums.model_dump(mode="json")}
    write_atomic(open_run(home, run) / _SHAPE, canonical_json(kept).encode())


def load_shape(home: SiloHome, run: str) -> Shape | None:
    """None if it is not known, or damaged: the workers know it."""
    try:
        kept = json.loads((home.run(run) / _SHAPE).read_bytes())
        return Shape(str(kept["layout"]), int(kept["size"]), MetricSums.model_validate(kept["empty_sums"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
    """The run is over: keeps its spec, for reports, and the local parameters, removes the rest; `spec.json` goes last,
    so that the server is asked about this run again if the process ends on the way."""
    folder = open_run(home, run)
    write_atomic(folder / _ENDED, spec_hash.encode())
    forget_secrets(home, run)
    for path in _others(folder):
        shutil.rmtree(path) if path.is_dir() else remove(path)
    move(folder / _SPEC, folder / _PAST)


def _others(folder: Path) -> Iterator[Path]:
    return (path for path in list(folder.iterdir()) if not any(map(path.match, (*_KEPT, _SPEC))))
