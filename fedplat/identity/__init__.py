"""Who is who: keys, signatures, certificates, signed requests and invites."""

from __future__ import annotations

from fedplat.identity.authority import (
    Certified,
    TlsFiles,
    ca_fingerprint,
    check_ca,
    ensure_authority,
    ensure_signing_key,
    ensure_tls,
    issue_tls,
    load_certified,
)
from fedplat.identity.invites import Invite, read_invite, secret_hash
from fedplat.identity.keys import (
    fingerprint,
    load_key,
    load_public,
    new_key,
    parse_fingerprint,
    public_pem,
    save_key,
    show_fingerprint,
)
from fedplat.identity.requests import (
    ClockSkewError,
    NonceCache,
    SignedRequest,
    new_nonce,
    parse_headers,
    sign_request,
    verify_request,
)
from fedplat.identity.signing import Label, enc, sign, verify

__all__ = [
    "Certified",
    "ClockSkewError",
    "Invite",
    "Label",
    "NonceCache",
    "SignedRequest",
    "TlsFiles",
    "ca_fingerprint",
    "check_ca",
    "enc",
    "ensure_authority",
    "ensure_signing_key",
    "ensure_tls",
    "fingerprint",
    "issue_tls",
    "load_certified",
    "load_key",
    "load_public",
    "new_key",
    "new_nonce",
    "parse_fingerprint",
    "parse_headers",
    "public_pem",
    "read_invite",
    "save_key",
    "secret_hash",
    "show_fingerprint",
    "sign",
    "sign_request",
    "verify",
    "verify_request",
]
