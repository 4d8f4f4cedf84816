"""The silo's signature over a report, and whether a report that somebody hands over bears it."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from fedplat.canonical import canonical_json
from fedplat.errors import IdentityError, WireError
from fedplat.identity import Label, fingerprint, load_public, public_pem, sign, verify
from fedplat.report.model import PrivacyReport, ReportFile, ReportSignature

_HINT = "Ask the silo for the file again: fedplat report privacy --format json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A report whose signature is valid. `is_known`: the key is the one that was expected; False if nobody
    said which: then the signature proves that one key made all of it, and not whose key."""

    file: ReportFile
    fingerprint: str
    is_known: bool


def sign_report(key: ec.EllipticCurvePrivateKey, report: PrivacyReport) -> ReportFile:
    """By the silo's enrolled key, over the report and the ledger's head; unsigned where that would be wrong."""
    if reason := _objection(report):
        return unsigned_report(report, reason)
    signature = ReportSignature(
        key=public_pem(key),
        fingerprint=fingerprint(key.public_key()),
        signature=sign(key, Label.LEDGER_REPORT, *_fields(report)).hex(),
    )
    return ReportFile(report=report, signature=signature)


def unsigned_report(report: PrivacyReport, reason: str) -> ReportFile:
    """The report, with why nobody signs for it."""
    return ReportFile(report=report, signature=None, unsigned_because=_objection(report) or reason)


def verify_report(text: str, expected: str | None = None) -> Verdict:
    """`text`: a report as JSON; `expected`: the fingerprint of the silo's key.

    Raises WireError for what is no report, IdentityError for one that is not signed, was altered, or by another key.
    """
    file = read_report(text)
    if file.signature is None:
        raise IdentityError("the report is not signed", hint=file.unsigned_because)
    key = load_public(file.signature.key)
    verify(key, Label.LEDGER_REPORT, bytes.fromhex(file.signature.signature), *_fields(file.report))
    found = fingerprint(key)
    if not hmac.compare_digest(found, file.signature.fingerprint):
        raise IdentityError("the report names another key than the one that signed it", hint=_HINT)
    if _objection(file.report):
        raise IdentityError("the report is signed although it must not be", hint=_objection(file.report))
    if expected is not None and not hmac.compare_digest(found, expected):
        raise IdentityError(
            f"the report is signed by another key than silo {file.report.silo}'s",
            hint="Compare fingerprints by phone: the silo reads out `fedplat client fingerprint`.",
        )
    return Verdict(file, found, expected is not None)


def read_report(text: str) -> ReportFile:
    """Raises WireError unless the text is a report and says nothing besides, nor anything twice."""
    try:
        raw = json.loads(text, object_pairs_hook=_once)
        file = ReportFile.model_validate_json(text)
    except (ValueError, RecursionError) as error:
        first = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ()
        where = f" (at {'.'.join(map(str, first))})" if first else ""
        raise WireError(f"this is no privacy report that this version can read{where}", hint=_HINT) from None
    if canonical_json(raw) != canonical(file):
        raise WireError("the report says something in another form than fedplat writes it", hint=_HINT)
    return file


def canonical(file: ReportFile) -> str:
    """The file as canonical JSON."""
    return canonical_json(file.model_dump(mode="json"))


def _fields(report: PrivacyReport) -> tuple[str | int, ...]:
    book = report.governance.ledger
    head = (book.seq, book.head) if book is not None else (0, "")
    return report.silo, *head, canonical_json(report.model_dump(mode="json"))


def _objection(report: PrivacyReport) -> str:
    wrong = [failure for check in report.accounting.cross_check for failure in check.failures]
    if wrong:
        return f"The accountants do not agree: {'; '.join(wrong)}."
    book = report.governance.ledger
    return f"The ledger is not whole: {book.problem}." if book is not None and book.problem else ""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found
