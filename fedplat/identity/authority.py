"""The server's own certificate authority, its TLS certificate, and the key that it signs with."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedplat.durable import write_atomic
from fedplat.errors import IdentityError, NotFoundError
from fedplat.home import ServerHome
from fedplat.identity.keys import MAX_PEM_BYTES, load_key, new_key, private_pem, read_private, save_key

AUTHORITY_LIFE = timedelta(days=3650)
TLS_LIFE = timedelta(days=825)
RENEW_BEFORE = timedelta(days=30)
_BACKDATE = timedelta(hours=1)  # silos whose clock lags accept a certificate that was made just now
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


@dataclass(frozen=True)
class Certified:
    """A private key and the certificate for its public half."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def certificate_pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode("ascii")


@dataclass(frozen=True)
class TlsFiles:
    """Files for `ssl.SSLContext.load_cert_chain`; both are the same file, so that they always match."""

    cert: Path
    key: Path


def ensure_authority(home: ServerHome, now: datetime | None = None) -> Certified:
    """Loads the server's CA, or makes it at the first start. Raises IdentityError if it is damaged."""
    path = home.ca / "ca.pem"
    try:
        return load_certified(path)
    except NotFoundError:
        authority = _new_authority(now or datetime.now(UTC))
        _save(authority, path)
        return authority


def ensure_tls(home: ServerHome, names: Sequence[str], now: datetime | None = None) -> TlsFiles:
    """The server's certificate for these host names and IP addresses.

    It is made anew when it is missing or damaged, is not by this CA, has other names, or ends within
    30 days. Raises IdentityError.
    """
    authority = ensure_authority(home, now)
    path = home.tls / "tls.pem"
    if not _still_good(path, authority, names, now or datetime.now(UTC)):
        _save(issue_tls(authority, names, now), path)
    return TlsFiles(cert=path, key=path)


def ensure_signing_key(home: ServerHome) -> ec.EllipticCurvePrivateKey:
    """The key that the server signs messages with; the CA's key signs certificates only."""
    path = home.keys / "signing.pem"
    try:
        return load_key(path)
    except NotFoundError:
        key = new_key()
        save_key(key, path)
        return key


def issue_tls(authority: Certified, names: Sequence[str], now: datetime | None = None) -> Certified:
    """A server certificate with a fresh key, 825 days or as long as the CA lasts. Raises IdentityError."""
    now = now or datetime.now(UTC)
    issuer = authority.certificate
    begin, end = issuer.not_valid_before_utc, issuer.not_valid_after_utc
    if not begin <= now < end:
        raise IdentityError(
            f"the server's CA is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, and it is {now:%Y-%m-%d} here",
            hint="Is the clock right? Then move the server's ca folder away and invite every silo anew.",
        )
    key = new_key()
    builder = _builder(key, "fedplat server", issuer.subject, now, min(now + TLS_LIFE, end))
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(_authority_id(authority.key), critical=False)
    )
    return Certified(key, builder.sign(authority.key, SHA256()))


def ca_fingerprint(cert_pem: str) -> str:
    """SHA-256 of the one certificate in this text, over its DER, 64 lower-case hex digits.

    Raises IdentityError for anything around it: a second certificate would be trusted unseen.
    """
    problem = IdentityError("not exactly one certificate in PEM", hint="Check that the address is fedplat's.")
    if len(cert_pem) > MAX_PEM_BYTES:
        raise problem
    try:
        certificate = x509.load_pem_x509_certificate(cert_pem.encode("ascii"))
    except ValueError:
        raise problem from None
    if certificate.public_bytes(Encoding.PEM).decode("ascii").strip() != cert_pem.strip():
        raise problem
    return certificate.fingerprint(SHA256()).hex()


def check_ca(cert_pem: str, expected_fingerprint: str) -> None:
    """Raises IdentityError unless this is the CA certificate that the invite names."""
    found = ca_fingerprint(cert_pem)
    if not hmac.compare_digest(found.encode(), expected_fingerprint.encode()):
        raise IdentityError(
            "the server's CA is not the one in the invite",
            hint="The address is wrong, somebody is in between, or the server was set up anew after the invite.",
        )


def _new_authority(now: datetime) -> Certified:
    key = new_key()
    # Two servers' authorities must not share a name, or clients would look for one under the other.
    name = f"fedplat CA {secrets.token_hex(4)}"
    builder = _builder(key, name, _common_name(name), now, now + AUTHORITY_LIFE)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .add_extension(_authority_id(key), critical=False)
    )
    return Certified(key, builder.sign(key, SHA256()))


def _builder(
    key: ec.EllipticCurvePrivateKey, name: str, issuer: x509.Name, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _authority_id(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    if not names:
        raise IdentityError(
            "the server has no name for its certificate", hint="Give it at least one host name or IP address."
        )
    return [_general_name(name) for name in dict.fromkeys(names)]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        host = name.lower()
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise IdentityError(
            f"{name[:80]!r} is neither a host name nor an IP address",
            hint="Give the name without https:// or a port.",
        )
    return x509.DNSName(host)


def _still_good(path: Path, authority: Certified, names: Sequence[str], now: datetime) -> bool:
    try:
        certificate = load_certified(path).certificate
        certificate.verify_directly_issued_by(authority.certificate)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (NotFoundError, IdentityError, InvalidSignature, ValueError, x509.ExtensionNotFound):
        return False
    in_time = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - RENEW_BEFORE
    return in_time and set(found) == set(_general_names(names))


def _save(certified: Certified, path: Path) -> None:
    # One file for both: no crash can leave the key of one pair beside the certificate of another.
    write_atomic(path, private_pem(certified.key) + certified.certificate_pem.encode("ascii"))


def load_certified(path: Path) -> Certified:
    """A key and its certificate from one file. Raises NotFoundError; IdentityError if it is damaged or not private."""
    key = load_key(path)
    try:
        certificate = x509.load_pem_x509_certificate(read_private(path))
    except ValueError:
        raise IdentityError(f"{path} holds no certificate", hint="Restore it from a backup.") from None
    if certificate.public_key() != key.public_key():
        raise IdentityError(f"key and certificate in {path} do not match", hint="Restore it from a backup.")
    return Certified(key, certificate)
