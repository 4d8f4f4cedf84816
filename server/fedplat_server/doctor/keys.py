"""Checks of what the server proves itself with."""

from __future__ import annotations

from collections.abc import Iterator

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedplat.doctor import Check, Finding, failed, ok
from fedplat.doctor.certificates import check_expiry
from fedplat.identity import fingerprint, load_certified, load_key, show_fingerprint
from fedplat_server.doctor.visit import Visit

_RENEW = "Start the server anew: it makes a new certificate by itself."


def checks(visit: Visit) -> Iterator[Check]:
    """The CA, the key that signs, the certificate."""
    yield Check("ca", lambda: _authority(visit), ("home",))
    yield Check("signing key", lambda: _signing_key(visit), ("home",))
    yield Check("certificate", lambda: _certificate(visit), ("settings", "ca"))


def _authority(visit: Visit) -> Finding:
    name = visit.authority.certificate.subject.rfc4514_string()
    return ok(f"{name}, with its key")


def _signing_key(visit: Visit) -> Finding:
    key = load_key(visit.home.keys / "signing.pem")
    return ok(f"fingerprint {show_fingerprint(fingerprint(key.public_key())[:16])} ...")


def _certificate(visit: Visit) -> Finding:
    shown, authority = load_certified(visit.home.tls / "tls.pem").certificate, visit.authority.certificate
    try:
        shown.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError):
        return failed("the server's certificate is not by its CA", _RENEW)
    return _names(visit, shown) or check_expiry(shown, authority)


def _names(visit: Visit, shown: x509.Certificate) -> Finding | None:
    found = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if {str(name.value) for name in found} == {name.lower() for name in visit.settings.names}:
        return None
    return failed("the server's certificate has other names than its settings", _RENEW)
