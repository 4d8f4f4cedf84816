"""What certificates say, for both sides."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509

from fedplat.doctor.checks import Finding, failed, ok, warning
from fedplat.identity.authority import RENEW_BEFORE

CA_WARN_BEFORE = timedelta(days=180)
_OURS = "CN=fedplat CA "


def check_expiry(certificate: x509.Certificate, authority: x509.Certificate, now: datetime | None = None) -> Finding:
    """How long the server's certificate and the CA of the federation are good."""
    now = now or datetime.now(UTC)
    ends, ca_ends = certificate.not_valid_after_utc, authority.not_valid_after_utc
    said = f"the server's certificate is good until {ends:%Y-%m-%d}, the CA until {ca_ends:%Y-%m-%d}"
    if not (certificate.not_valid_before_utc <= now < ends and authority.not_valid_before_utc <= now < ca_ends):
        return failed(
            f"{said}, and it is {now:%Y-%m-%d} here",
            "Is the clock right? Start the server anew, which renews its certificate; a CA that has ended needs new "
            "invites for all silos.",
        )
    if ca_ends - now < CA_WARN_BEFORE:
        return warning(said, "Plan a new server with a new CA, and new invites for all silos.")
    if ends - now < RENEW_BEFORE:
        return warning(said, "Start the server anew before that day: it renews its certificate.")
    return ok(said)


def is_fedplat_authority(name: str) -> bool:
    """Whether a CA of this name was made by a fedplat server."""
    return name.startswith(_OURS)
