"""Runs that wait for somebody here to agree (`approval = "manual"` in policy.toml), one file each, kept for good.

An agreement is for one spec, by its hash: another spec under the same run id is asked about anew.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from fedplat.durable import make_private_dir, write_atomic
from fedplat.errors import HomeError, NotFoundError, WireError
from fedplat.home import SiloHome
from fedplat.names import check_run_id
from fedplat.spec import RunSpec
from fedplat.wire.buffers import Digest

Decision = Literal["pending", "approved", "refused"]


class Approval(BaseModel):
    """A run that was asked about. `decided_at`: None while it is pending."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    spec: RunSpec
    spec_hash: Digest
    asked_at: AwareDatetime
    decision: Decision = "pending"
    decided_at: AwareDatetime | None = None


def ask(home: SiloHome, run: str, spec: RunSpec) -> Approval:
    """What was decided about this run with this spec; if it was never asked about, it is pending from now on."""
    known = _read(_file(home, run))
    if known is not None and known.spec_hash == spec.hash:
        return known
    return _write(home, Approval(run=run, spec=spec, spec_hash=spec.hash, asked_at=_now()))


def decide(home: SiloHome, run: str, decision: Decision) -> Approval:
    """On disk when this returns. Raises NotFoundError for a run that nobody asked about."""
    return _write(home, find(home, run).model_copy(update={"decision": decision, "decided_at": _now()}))


def find(home: SiloHome, run: str) -> Approval:
    """Raises NotFoundError for a run that nobody asked about."""
    try:
        known = _read(_file(home, run))
    except WireError:
        known = None
    if known is None:
        raise NotFoundError(f"run {run[:80]} has not asked to take part", hint="fedplat client runs pending")
    return known


def pending(home: SiloHome) -> list[Approval]:
    """The runs that wait, the longest first."""
    known = filter(None, map(_read, _folder(home).glob("*.json")))
    return sorted((a for a in known if a.decision == "pending"), key=lambda a: (a.asked_at, a.run))


def _read(path: Path) -> Approval | None:
    try:
        return Approval.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise HomeError(f"{path} is damaged", hint="Remove it: the run asks again when it joins again.") from None


def _write(home: SiloHome, approval: Approval) -> Approval:
    make_private_dir(_folder(home))
    write_atomic(_file(home, approval.run), approval.model_dump_json().encode())
    return approval


def _folder(home: SiloHome) -> Path:
    return home.path / "approvals"


def _file(home: SiloHome, run: str) -> Path:
    return _folder(home) / f"{check_run_id(run)}.json"


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
