"""Signatures over labelled, unambiguously encoded fields: one made for one purpose fits no other."""

from __future__ import annotations

from enum import StrEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from fedplat.errors import IdentityError

MAX_SIGNATURE_BYTES = 72  # DER of two 256-bit integers


class Label(StrEnum):
    """What a signature is for; it is the first field under every one."""

    REQUEST = "fedplat/1/request"
    ENROL = "fedplat/1/enrol"
    ROSTER = "fedplat/1/roster"
    COHORT = "fedplat/1/cohort"
    LEDGER = "fedplat/1/ledger"
    LEDGER_HEAD = "fedplat/1/ledger-head"
    LEDGER_REPORT = "fedplat/1/ledger-report"
    SERVER_REPORT = "fedplat/1/server-report"
    JOIN = "fedplat/1/join"
    SERVER = "fedplat/1/server"


def enc(*fields: bytes | str | int) -> bytes:
    """The fields as bytes; different fields never give the same bytes.

    Each is a letter for its type (b, s, i), its length in 8 bytes (big-endian), and its content:
    raw, UTF-8, or two's complement big-endian.
    """
    return b"".join(map(_enc_one, fields))


def sign(key: ec.EllipticCurvePrivateKey, label: Label, *fields: bytes | str | int) -> bytes:
    """ECDSA with SHA-256 over `enc(label, *fields)`, DER."""
    return key.sign(enc(label, *fields), ec.ECDSA(SHA256()))


def verify(public: ec.EllipticCurvePublicKey, label: Label, signature: bytes, *fields: bytes | str | int) -> None:
    """Raises IdentityError unless the signature is by that key, for that label, over those fields."""
    try:
        public.verify(signature, enc(label, *fields), ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise IdentityError(
            f"a signature is not valid ({label})",
            hint="The content was altered, or another key signed it: compare the fingerprints.",
        ) from None


def _enc_one(field: bytes | str | int) -> bytes:
    if isinstance(field, bytes):
        kind, content = b"b", field
    elif isinstance(field, str):
        # A lone surrogate is legal in JSON; it must neither raise here nor look like another string.
        kind, content = b"s", field.encode("utf-8", "surrogatepass")
    else:
        kind, content = b"i", field.to_bytes(field.bit_length() // 8 + 1, "big", signed=True)
    return kind + len(content).to_bytes(8, "big") + content
