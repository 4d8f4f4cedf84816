"""Signatures over reports, and whether a report that somebody hands over bears one.

A silo signs with its enrolled key what its own book says; the server, under a label of its own, what silos signed.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from fedplat.canonical import canonical_json
from fedplat.errors import IdentityError, WireError
from fedplat.identity import Label, fingerprint, load_public, public_pem, sign, verify
from fedplat.ledger import verify_statement
from fedplat.report.federation.model import FederationFile, FederationReport
from fedplat.report.model import CheckedEpsilon, PrivacyReport, ReportFile, ReportSignature

AnyFile = ReportFile | FederationFile
_HINT = "Ask whoever made it for the file again: fedplat report privacy --format json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A report whose signature is valid. `is_known`: the key is the one that was expected; False if nobody
    said which: then the signature proves that one key made all of it, and not whose key."""

    file: AnyFile
    fingerprint: str
    is_known: bool


def signer(report: PrivacyReport | FederationReport) -> str:
    """Who signs such a report."""
    return f"server {report.server}" if isinstance(report, FederationReport) else f"silo {report.silo}"


def how_to_know(report: PrivacyReport | FederationReport) -> str:
    """What tells whose key it was."""
    if isinstance(report, FederationReport):
        return "Verify it at the server, or at a silo that is enrolled there: they know the server's key."
    return f"Let silo {report.silo} read out by phone what `fedplat client fingerprint` says there, and compare."


def sign_report(key: ec.EllipticCurvePrivateKey, report: PrivacyReport) -> ReportFile:
    """By the silo's enrolled key, over the report and the ledger's head; unsigned where that would be wrong."""
    if reason := _objection(report):
        return unsigned_report(report, reason)
    return ReportFile(report=report, signature=_signature(key, report))


def unsigned_report(report: PrivacyReport, reason: str) -> ReportFile:
    """The report, with why nobody signs for it."""
    return ReportFile(report=report, signature=None, unsigned_because=_objection(report) or reason)


def sign_federation(key: ec.EllipticCurvePrivateKey, report: FederationReport) -> FederationFile:
    """By the server's key; unsigned where that would be wrong."""
    if reason := _objection(report):
        return FederationFile(report=report, signature=None, unsigned_because=reason)
    return FederationFile(report=report, signature=_signature(key, report))


def verify_report(text: str, expected: str | None = None) -> Verdict:
    """`text`: a report as JSON; `expected`: the fingerprint of the silo's key, or the server's.

    Raises WireError for what is no report, IdentityError for one that is not signed, was altered, or by another key;
    also where a statement of a silo that is inside is not as that silo signed it.
    """
    file = read_report(text)
    if file.signature is None:
        hint = file.unsigned_because or f"Its signature was taken away: rely on no figure in it. {_HINT}"
        raise IdentityError("the report is not signed", hint=hint)
    key = _checked_key(file.report, file.signature)
    found = fingerprint(key)
    if not hmac.compare_digest(found, file.signature.fingerprint):
        raise IdentityError("the report names another key than the one that signed it", hint=_HINT)
    if _objection(file.report):
        raise IdentityError("the report is signed although it must not be", hint=_objection(file.report))
    if expected is not None and not hmac.compare_digest(found, expected):
        raise IdentityError(
            f"the report is signed by another key than that of {signer(file.report)}",
            hint=how_to_know(file.report),
        )
    if isinstance(file, FederationFile):
        _check_statements(file.report)
    return Verdict(file, found, expected is not None)


def _checked_key(report: PrivacyReport | FederationReport, signature: ReportSignature) -> ec.EllipticCurvePublicKey:
    """The key, after its signature was verified."""
    try:
        key = load_public(signature.key)
        verify(key, _label(report), bytes.fromhex(signature.signature), *_fields(report))
    except IdentityError:
        message = "the report is not as it was signed: it was altered, or its signature is from another report"
        raise IdentityError(message, hint=f"Rely on no figure in it. {_HINT}") from None
    return key


def read_report(text: str) -> AnyFile:
    """Raises WireError unless the text is a report and says nothing besides, nor anything twice."""
    try:
        raw = json.loads(text, object_pairs_hook=_once)
        file = _kind(raw).model_validate_json(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"this is no privacy report that this version can read ({_why(error)})", hint=_HINT) from None
    if canonical_json(raw) != canonical(file):
        raise WireError("the report says something in another form than fedplat writes it", hint=_HINT)
    return file


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError) and (first := error.errors()[0])["loc"]:
        what = {"missing": "is missing", "extra_forbidden": "is not known"}.get(first["type"], "is not valid")
        return f"{'.'.join(map(str, first['loc']))} {what}"
    return "it is no JSON, or was cut off, or says something twice"


def canonical(file: AnyFile) -> str:
    """The file as canonical JSON."""
    return canonical_json(file.model_dump(mode="json"))


def _kind(raw: object) -> type[ReportFile] | type[FederationFile]:
    report = raw.get("report") if isinstance(raw, dict) else None
    return FederationFile if isinstance(report, dict) and "scope" in report else ReportFile


def _signature(key: ec.EllipticCurvePrivateKey, report: PrivacyReport | FederationReport) -> ReportSignature:
    return ReportSignature(
        key=public_pem(key),
        fingerprint=fingerprint(key.public_key()),
        signature=sign(key, _label(report), *_fields(report)).hex(),
    )


def _label(report: PrivacyReport | FederationReport) -> Label:
    return Label.SERVER_REPORT if isinstance(report, FederationReport) else Label.LEDGER_REPORT


def _fields(report: PrivacyReport | FederationReport) -> tuple[str | int, ...]:
    text = canonical_json(report.model_dump(mode="json"))
    if isinstance(report, FederationReport):
        return report.server, text
    book = report.governance.ledger
    head = (book.seq, book.head) if book is not None else (0, "")
    return report.silo, *head, text


def _objection(report: PrivacyReport | FederationReport) -> str:
    wrong = list(_failures(report.accounting.cross_check))
    if wrong:
        return f"The accountants do not agree: {'; '.join(wrong)}."
    if isinstance(report, FederationReport):
        failed = {one.name for one in report.accounting.assumptions if one.status == "fail"}
        return "A silo has signed another epsilon than its events give." if "figures-as-signed" in failed else ""
    book = report.governance.ledger
    return f"The ledger is not whole: {book.problem}." if book is not None and book.problem else ""


def _failures(checks: Iterable[CheckedEpsilon]) -> Iterable[str]:
    return (failure for check in checks for failure in check.failures)


def _check_statements(report: FederationReport) -> None:
    """What silos signed is inside as they signed it, and the figures are about that."""
    for line in report.privacy_loss.silos:
        if line.statement is None or line.statement_key is None:
            continue
        try:
            key = load_public(line.statement_key)
            told = verify_statement(line.statement, key, line.silo)
        except (IdentityError, WireError):
            raise IdentityError(f"a statement in the report is not as silo {line.silo} signed it", hint=_HINT) from None
        if fingerprint(key) != line.fingerprint or told.spent != line.lifetime.events:
            raise IdentityError(f"the report says something else than silo {line.silo} has signed", hint=_HINT)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found
