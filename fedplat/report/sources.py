"""Where privacy reports come from: each side registers, by the entry-point group `fedplat.reports`, what it knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedplat.errors import NotFoundError

if TYPE_CHECKING:
    from fedplat.report.federation.model import FederationReport
    from fedplat.report.model import PrivacyReport
    from fedplat.report.signing import AnyFile

GROUP = "fedplat.reports"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, at most one of `run`, `dataset` and `plan`; `root` is what `fedplat_home` returns."""

    root: Path
    silo: str | None = None
    run: str | None = None
    dataset: str | None = None
    plan: Path | None = None
    num_units: int | None = None


class Source(Protocol):
    """One side's reports."""

    def is_here(self, asked: Question) -> bool:
        """Whether this side has a home there that the question can be about."""

    def answer(self, asked: Question) -> AnyFile:
        """The report, signed where that is right. Raises NotFoundError."""

    def known_key(self, root: Path, report: PrivacyReport | FederationReport) -> str | None:
        """The fingerprint of the key that should have signed it, as far as the homes in `root` know; else None."""


def answer(asked: Question) -> AnyFile:
    """By the silo if one is named, or a plan; else by the server if there is one. Raises NotFoundError."""
    of_silo = asked.silo is not None or asked.plan is not None
    order = ("silo", "server") if of_silo else ("server", "silo")
    known = dict(_sources())
    for side in order:
        if side in known and known[side].is_here(asked):
            return known[side].answer(asked)
    missing = f"no silo {asked.silo}" if asked.silo else "no silo" if asked.plan else "neither a server nor a silo"
    raise NotFoundError(
        f"there is {missing} in {asked.root}",
        hint=("A plan is weighed in a hospital, by its own book. " if asked.plan else "")
        + "--home DIR, or FEDPLAT_HOME, says where the server or the silo keeps its state.",
    )


def known_key(root: Path, report: PrivacyReport | FederationReport) -> str | None:
    """The fingerprint of the key that should have signed a report; None if nothing in `root` tells."""
    found = (source.known_key(root, report) for _, source in _sources())
    return next((key for key in found if key is not None), None)


def _sources() -> Iterator[tuple[str, Source]]:
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        yield entry.name, entry.load()
