"""The federation's privacy reports, signed by the server's key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedplat.report.federation.model import FederationFile, FederationReport
    from fedplat.report.model import PrivacyReport
    from fedplat.report.sources import Question


class ServerReports:
    """A `fedplat.report.sources.Source`."""

    def is_here(self, asked: Question) -> bool:
        """Whether a server has its home there. A plan is weighed at a silo."""
        from fedplat.home import ServerHome

        return asked.plan is None and ServerHome(asked.root).ca.is_dir()

    def answer(self, asked: Question) -> FederationFile:
        """What the silos have signed, together. Raises NotFoundError; ConnectionLostError unless the server runs."""
        from fedplat.home import ServerHome
        from fedplat.identity import ensure_signing_key
        from fedplat.report.federation.assemble import make_federation_report
        from fedplat.report.signing import sign_federation
        from fedplat_server.adminclient import connect
        from fedplat_server.reports.gathering import gather

        with connect(str(asked.root)) as admin:
            material = gather(admin, run=asked.run, silo=asked.silo, dataset=asked.dataset)
        return sign_federation(ensure_signing_key(ServerHome(asked.root)), make_federation_report(material))

    def known_key(self, root: Path, report: PrivacyReport | FederationReport) -> str | None:
        """Of the server, where it is the one of this machine."""
        from fedplat.home import ServerHome
        from fedplat.identity import ensure_signing_key, fingerprint
        from fedplat.report.federation.model import FederationReport

        home = ServerHome(root)
        if not isinstance(report, FederationReport) or not home.ca.is_dir():
            return None
        return fingerprint(ensure_signing_key(home).public_key())


SOURCE = ServerReports()
