"""TOML files of the silo's own home."""

from __future__ import annotations

import tomllib
from pathlib import Path

from fedplat.errors import FedplatError


def read_toml(path: Path, kind: type[FedplatError], hint: str) -> dict[str, object]:
    """The file as a table; `kind` is raised, with the hint, if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise kind(f"{path} cannot be read: {error}", hint=hint) from None
