"""A run's result as files that need no fedplat to be read."""

from __future__ import annotations

import json
from pathlib import Path

from fedplat.errors import ConflictError, FedplatError
from fedplat.spec import RunSpec
from fedplat_server.adminclient import AdminClient


def export_run(admin: AdminClient, run_id: str, folder: Path | None, number: int | None = None) -> list[Path]:
    """Write `model.safetensors`, `spec.json`, `preprocessing.json` and `metrics.json`; returns the paths.

    ConflictError if the folder has files of such names already.
    """
    view = admin.view(f"/runs/{run_id}")
    target = folder or Path(view["id"])
    files = {name: target / name for name in ("model.safetensors", "spec.json", "preprocessing.json", "metrics.json")}
    for path in files.values():
        if path.exists():
            raise ConflictError(f"{path} exists already", hint="name another folder with --to")
    try:
        target.mkdir(parents=True, exist_ok=True)
        which = "" if number is None else f"?round={number}"
        admin.download(f"/runs/{view['id']}/weights{which}", files["model.safetensors"])
        _write(files["spec.json"], {"hash": view["spec_hash"], "spec": view["spec"]})
        _write(files["preprocessing.json"], preprocessing(RunSpec.model_validate(view["spec"])))
        _write(files["metrics.json"], {k: view[k] for k in ("id", "state", "rounds", "evaluations")})
    except OSError as error:
        hint = "name a folder that you may write to with --to"
        raise FedplatError(f"cannot write into {target}: {error.strerror}", hint=hint) from None
    return list(files.values())


def preprocessing(spec: RunSpec) -> dict[str, object]:
    """What turns a record into the model's input: the declared schema, in input order."""
    options = spec.task.options
    return {key: options[key] for key in ("scaling", "features", "target") if key in options}


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
