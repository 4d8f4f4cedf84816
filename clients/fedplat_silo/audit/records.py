"""Audits as they are kept: in the silo's home, a file each, none is ever overwritten. Needs no torch."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import ValidationError

from fedplat.durable import make_private_dir, write_atomic
from fedplat.errors import HomeError
from fedplat.home import SiloHome
from fedplat.report.material import AuditFacts


def keep(home: SiloHome, facts: AuditFacts) -> Path:
    """Where it lies, on disk when this returns."""
    make_private_dir(_folder(home))
    path = _folder(home) / f"{facts.made_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.json"
    write_atomic(path, facts.model_dump_json(indent=2).encode() + b"\n")
    return path


def kept(home: SiloHome) -> tuple[AuditFacts, ...]:
    """All of them. Raises HomeError for a damaged one: what it found must not be overlooked."""
    return tuple(_read(path) for path in sorted(_folder(home).glob("*.json")))


def _read(path: Path) -> AuditFacts:
    try:
        return AuditFacts.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise HomeError(
            f"{path} cannot be read, or is no audit of this version",
            hint="Restore it, or remove it and audit again: fedplat client audit",
        ) from None


def _folder(home: SiloHome) -> Path:
    return home.path / "audits"
