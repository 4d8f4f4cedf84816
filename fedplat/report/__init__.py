"""The privacy report: what a silo's patients were, or would be, charged, as a document that a privacy officer can sign.

`Material` goes in, `make_report` computes every figure from its events, `sign_report` signs, `render` writes it down,
`verify_report` reads it back. Pure functions over plain data: whose book the material came from does not matter here.
"""

from __future__ import annotations

from fedplat.report.assemble import make_report
from fedplat.report.material import (
    AuditFacts,
    BookFacts,
    DatasetFacts,
    Limit,
    Material,
    Release,
    RunFacts,
    RunState,
    SpecFacts,
)
from fedplat.report.model import PrivacyReport, ReportFile
from fedplat.report.rendering import FORMATS, data_of, render, written
from fedplat.report.signing import Verdict, sign_report, unsigned_report, verify_report

__all__ = [
    "FORMATS",
    "AuditFacts",
    "BookFacts",
    "DatasetFacts",
    "Limit",
    "Material",
    "PrivacyReport",
    "Release",
    "ReportFile",
    "RunFacts",
    "RunState",
    "SpecFacts",
    "Verdict",
    "data_of",
    "make_report",
    "render",
    "sign_report",
    "unsigned_report",
    "verify_report",
    "written",
]
