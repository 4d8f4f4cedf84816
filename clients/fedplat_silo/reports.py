"""The silo's privacy reports, signed by its key: from its own book, offline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedplat.home import SiloHome
    from fedplat.report.federation.model import FederationReport
    from fedplat.report.material import Material
    from fedplat.report.model import PrivacyReport, ReportFile
    from fedplat.report.sources import Question
    from fedplat_silo.membership import Place


class SiloReports:
    """A `fedplat.report.sources.Source`."""

    def is_here(self, asked: Question) -> bool:
        """Whether the silo that is named, or any, has its home there."""
        homes = asked.root / "silos"
        return (homes / asked.silo).is_dir() if asked.silo else homes.is_dir() and any(homes.iterdir())

    def answer(self, asked: Question) -> ReportFile:
        """What the book says, or would say with the plan. Raises NotFoundError."""
        from fedplat.report import make_report
        from fedplat_silo.status import silo_home

        place = silo_home(asked.root, asked.silo)
        return signed(place, make_report(_material(place, asked)))

    def known_key(self, root: Path, report: PrivacyReport | FederationReport) -> str | None:
        """Of the silo, where it is one of this machine; of the server, where a silo of this machine knows it."""
        from fedplat.home import SiloHome
        from fedplat.identity import fingerprint, load_public
        from fedplat.report.model import PrivacyReport
        from fedplat_silo.membership import load_place

        if isinstance(report, PrivacyReport):
            place = load_place(SiloHome(root, report.silo))
            return place.key_fingerprint if place else None
        places = [place for place in _places(root) if place.address == report.server]
        keys = {fingerprint(load_public(place.server_key)) for place in places}
        return keys.pop() if len(keys) == 1 else None


def signed(place: SiloHome, made: PrivacyReport) -> ReportFile:
    """By the silo's key, if it has one."""
    from fedplat.errors import NotFoundError
    from fedplat.report import sign_report, unsigned_report
    from fedplat_silo.membership import load_membership

    try:
        return sign_report(load_membership(place).key, made)
    except NotFoundError:
        return unsigned_report(made, f"Silo {place.name} is not enrolled, so it has no key to sign with.")


def _places(root: Path) -> Iterator[Place]:
    """Of every silo that is enrolled there."""
    from fedplat.errors import WireError
    from fedplat.home import SiloHome
    from fedplat_silo.membership import load_place

    for folder in sorted((root / "silos").glob("*")):
        with suppress(WireError):
            if place := load_place(SiloHome(root, folder.name)):
                yield place


def _material(place: SiloHome, asked: Question) -> Material:
    from fedplat.spec import load_spec
    from fedplat_silo import reporting

    if asked.plan is not None and asked.num_units is not None:
        return reporting.of_plan(place, load_spec(asked.plan), asked.num_units)
    return reporting.of_run(place, asked.run) if asked.run is not None else reporting.of_dataset(place, asked.dataset)


SOURCE = SiloReports()
