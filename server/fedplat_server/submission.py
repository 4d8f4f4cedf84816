"""A spec file on its way to the server: checked here, with the initial weights beside it if it names some."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedplat.errors import SpecError
from fedplat.spec import load_spec


def pack_submission(path: Path) -> bytes:
    """The spec as canonical JSON; if it names initial weights (then by their hash), a NUL byte and the file follow."""
    spec = load_spec(path)
    if spec.model.init == "seed":
        return spec.canonical().encode()
    weights = _read_init(path.parent / spec.model.init, path)
    named = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"init": named})})
    return spec.canonical().encode() + b"\0" + weights


def _read_init(path: Path, spec: Path) -> bytes:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
        load(data)
    except OSError as error:
        raise SpecError(
            f"{spec}: 'model.init' names {path}, which cannot be read: {error.strerror}",
            hint="give a path relative to the spec, or 'seed' for a model from the run's seed",
        ) from None
    except SafetensorError as error:
        raise SpecError(f"{spec}: 'model.init' names {path}, which is no safetensors file: {error}") from None
    return data
