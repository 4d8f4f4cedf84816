from __future__ import annotations

import hashlib
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fedplat.errors import IdentityError
from fedplat.home import ServerHome
from fedplat.identity import (
    Certified,
    TlsFiles,
    ca_fingerprint,
    check_ca,
    ensure_authority,
    ensure_signing_key,
    ensure_tls,
    issue_tls,
    load_key,
)
from fedplat.identity.keys import private_pem

NAMES = ["fed.example.org", "localhost", "127.0.0.1", "::1"]


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    home = ServerHome(tmp_path / "one")
    home.create()
    return home


@pytest.fixture
def other(tmp_path: Path) -> ServerHome:
    home = ServerHome(tmp_path / "other")
    home.create()
    return home


def handshake(files: TlsFiles, authority: Certified, name: str) -> None:
    """A real TLS connection, as strict as Python 3.13 and later are by default."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(files.cert, files.key)
    client_side = ssl.create_default_context(cadata=authority.certificate_pem)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                with server_side.wrap_socket(connection, server_side=True) as tls:
                    tls.sendall(tls.recv(5))
            except (ssl.SSLError, ConnectionError):
                pass  # the client says why

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with (
            socket.create_connection(listener.getsockname()) as plain,
            client_side.wrap_socket(plain, server_hostname=name) as tls,
        ):
            tls.sendall(b"hello")
            assert tls.recv(5) == b"hello"
    finally:
        thread.join()
        listener.close()


def certificate(files: TlsFiles) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.cert.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_the_right_names_connect(home: ServerHome, name: str) -> None:
    handshake(ensure_tls(home, NAMES), ensure_authority(home), name)


@pytest.mark.parametrize("name", ["evil.example.org", "127.0.0.2"])
def test_a_wrong_name_is_refused(home: ServerHome, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)mismatch|not valid for"):
        handshake(ensure_tls(home, NAMES), ensure_authority(home), name)


def test_another_servers_ca_is_refused(home: ServerHome, other: ServerHome) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ensure_tls(home, NAMES), ensure_authority(other), "localhost")


def test_the_tls_certificate_cannot_issue_certificates(home: ServerHome, tmp_path: Path) -> None:
    files = ensure_tls(home, NAMES)
    leaf = Certified(load_key(files.key), certificate(files))
    forged = issue_tls(leaf, ["evil.example.org"])
    for certified, right in [(leaf, (False, None)), (ensure_authority(home), (True, 0))]:
        constraints = certified.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert (constraints.value.ca, constraints.value.path_length) == right
    chain = tmp_path / "chain.pem"
    chain.write_text(private_pem(forged.key).decode() + forged.certificate_pem + leaf.certificate_pem)
    with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA certificate"):
        handshake(TlsFiles(chain, chain), ensure_authority(home), "evil.example.org")


def test_it_all_stays_the_same_over_a_restart(home: ServerHome) -> None:
    before = ensure_authority(home), certificate(ensure_tls(home, NAMES)), ensure_signing_key(home)
    after = ensure_authority(home), certificate(ensure_tls(home, NAMES[::-1])), ensure_signing_key(home)
    assert after[0].certificate == before[0].certificate
    assert after[1] == before[1]
    assert after[2].private_numbers() == before[2].private_numbers()
    assert before[2].public_key() != before[0].key.public_key()


def test_every_file_is_private(home: ServerHome) -> None:
    ensure_tls(home, NAMES)
    ensure_signing_key(home)
    files = [path for path in home.path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_certificate_is_renewed_when_it_must_be(home: ServerHome, other: ServerHome) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    first = certificate(ensure_tls(home, ["a"], now))
    assert first.not_valid_before_utc == now - timedelta(hours=1)
    assert first.not_valid_after_utc == now + timedelta(days=825)
    assert certificate(ensure_tls(home, ["a"], now + timedelta(days=795))) == first
    assert certificate(ensure_tls(home, ["a"], now + timedelta(days=795, seconds=1))) != first
    second = certificate(ensure_tls(home, ["a"], now))
    assert second.public_key() != first.public_key(), "the one before was not valid yet"
    assert certificate(ensure_tls(home, ["a", "b"], now)) != second
    (home.tls / "tls.pem").write_bytes(ensure_tls(other, ["a", "b"], now).cert.read_bytes())
    third = certificate(ensure_tls(home, ["a", "b"], now))
    third.verify_directly_issued_by(ensure_authority(home).certificate)


@pytest.mark.parametrize("cut", [0, 10, 300, -30])
def test_a_damaged_tls_file_is_replaced_and_a_damaged_ca_is_not(home: ServerHome, cut: int) -> None:
    path = ensure_tls(home, NAMES).cert
    path.write_bytes(path.read_bytes()[:cut])
    handshake(ensure_tls(home, NAMES), ensure_authority(home), "localhost")
    ca = home.ca / "ca.pem"
    ca.write_bytes(ca.read_bytes()[:cut])
    with pytest.raises(IdentityError, match="backup"):
        ensure_tls(home, NAMES)


def test_a_ca_whose_key_and_certificate_differ_is_refused(home: ServerHome, other: ServerHome) -> None:
    ensure_authority(home)
    ensure_authority(other)
    marker = b"-----BEGIN CERTIFICATE"
    key = (home.ca / "ca.pem").read_bytes().split(marker)[0]
    rest = (other.ca / "ca.pem").read_bytes().split(marker)[1]
    (home.ca / "ca.pem").write_bytes(key + marker + rest)
    with pytest.raises(IdentityError, match="do not match"):
        ensure_authority(home)


def test_an_expired_ca_says_so(home: ServerHome) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    ensure_authority(home, now)
    with pytest.raises(IdentityError, match="valid from 2029-12-31 to 2039-12-30"):
        ensure_tls(home, NAMES, now + timedelta(days=3651))
    late = certificate(ensure_tls(home, NAMES, now + timedelta(days=3600)))
    assert late.not_valid_after_utc == now + timedelta(days=3650)


@pytest.mark.parametrize("names", [[], [""], ["https://fed"], ["fed:8443"], ["a..b"], ["*"], ["ä.org"], ["a" * 64]])
def test_names_that_are_no_names(home: ServerHome, names: list[str]) -> None:
    with pytest.raises(IdentityError):
        ensure_tls(home, names)


def test_the_fingerprint_is_over_the_der(home: ServerHome) -> None:
    pem = ensure_authority(home).certificate_pem
    assert ca_fingerprint(pem) == hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    assert ca_fingerprint(pem.strip()) == ca_fingerprint(pem)


def test_a_ca_is_compared_with_the_invites(home: ServerHome, other: ServerHome) -> None:
    mine, theirs = ensure_authority(home).certificate_pem, ensure_authority(other).certificate_pem
    check_ca(mine, ca_fingerprint(mine))
    with pytest.raises(IdentityError, match="not the one in the invite"):
        check_ca(theirs, ca_fingerprint(mine))


def test_no_second_certificate_slips_in_behind_the_right_one(home: ServerHome, other: ServerHome) -> None:
    mine, theirs = ensure_authority(home).certificate_pem, ensure_authority(other).certificate_pem
    for text in (mine + theirs, theirs + mine, "x" + mine, mine + "x", mine * 100, "", "ä", mine[:200]):
        with pytest.raises(IdentityError):
            check_ca(text, ca_fingerprint(mine))


def test_no_key_is_shown(home: ServerHome) -> None:
    assert "key" not in repr(ensure_authority(home)).lower()
