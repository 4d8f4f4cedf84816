from __future__ import annotations

import hashlib
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from fedplat.errors import FedplatError, IdentityError, NotFoundError, WireError
from fedplat.identity import (
    Label,
    enc,
    fingerprint,
    load_key,
    load_public,
    new_key,
    parse_fingerprint,
    public_pem,
    save_key,
    show_fingerprint,
    sign,
    verify,
)

KEY = new_key()
FIELDS = st.lists(st.one_of(st.binary(), st.text(), st.integers()), max_size=4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_key(KEY, tmp_path / "key.pem")
    return tmp_path / "key.pem"


def test_a_saved_key_comes_back_and_is_private(path: Path) -> None:
    assert load_key(path).private_numbers() == KEY.private_numbers()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_open_is_refused_with_the_cure(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {path}"):
        load_key(path)


def test_a_missing_key_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="new invite"):
        load_key(tmp_path / "none.pem")


@pytest.mark.parametrize("content", [b"", b"\0" * 20_000, b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_key_says_what_to_do(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(IdentityError, match="backup"):
        load_key(path)


def test_a_cut_key_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(IdentityError):
        load_key(path)


@pytest.mark.parametrize("other", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()])
def test_only_p256_is_accepted(path: Path, other: ec.EllipticCurvePrivateKey) -> None:
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(IdentityError, match="P-256"):
        load_key(path)
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(IdentityError, match="P-256"):
        load_public(public.decode())


def test_public_keys_travel_as_pem() -> None:
    public = load_public(public_pem(KEY))
    assert public == KEY.public_key()
    with pytest.raises(IdentityError):
        load_public(public_pem(KEY) + " " * 20_000)


@given(st.text())
def test_no_text_breaks_load_public(text: str) -> None:
    with pytest.raises(IdentityError):
        load_public(text)


def test_the_fingerprint_is_what_openssl_computes(path: Path) -> None:
    command = ["openssl", "pkey", "-in", str(path), "-pubout", "-outform", "DER"]
    der = subprocess.run(command, capture_output=True, check=True).stdout
    assert fingerprint(KEY.public_key()) == hashlib.sha256(der).hexdigest()


def test_fingerprints_as_people_see_them() -> None:
    fp = fingerprint(KEY.public_key())
    shown = show_fingerprint(fp)
    assert shown.split(" ") == [fp[start : start + 4] for start in range(0, 64, 4)]
    assert parse_fingerprint(f" {shown.upper()}\n") == fp
    for wrong in ("", fp[1:], fp + "0", "g" + fp[1:]):
        with pytest.raises(WireError):
            parse_fingerprint(wrong)


@given(FIELDS, FIELDS)
def test_enc_is_injective(one: list[bytes | str | int], other: list[bytes | str | int]) -> None:
    typed = [[(type(field), field) for field in fields] for fields in (one, other)]
    assert (enc(*one) == enc(*other)) == (typed[0] == typed[1])


def test_enc_keeps_apart_what_looks_alike() -> None:
    alike: list[tuple[bytes | str | int, ...]] = [
        (), ("",), ("", ""), ("ab", "c"), ("a", "bc"), ("abc",), (b"abc",), (1,), ("1",), (b"\x01",), (-1,),
        (255,), (-255,), (256,), (0,), ("\ud800",), ("s\0\0\0\0\0\0\0\0",),
    ]  # fmt: skip
    assert len({enc(*fields) for fields in alike}) == len(alike)


def test_enc_is_the_documented_format() -> None:
    assert enc("ä", b"\0", 128).hex() == "730000000000000002c3a4" + "62000000000000000100" + "6900000000000000020080"


def test_a_signature_fits_its_key_label_and_fields_only() -> None:
    signature = sign(KEY, Label.ROSTER, "a", 1)
    verify(KEY.public_key(), Label.ROSTER, signature, "a", 1)
    with pytest.raises(IdentityError, match="roster"):
        verify(new_key().public_key(), Label.ROSTER, signature, "a", 1)
    others: list[tuple[Label, tuple[str | int, ...]]] = [
        (Label.COHORT, ("a", 1)),
        (Label.ROSTER, ("a", 2)),
        (Label.ROSTER, ("a", "1")),
    ]
    for label, fields in others:
        with pytest.raises(IdentityError):
            verify(KEY.public_key(), label, signature, *fields)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_signature(signature: bytes) -> None:
    with pytest.raises(FedplatError):
        verify(KEY.public_key(), Label.SERVER, signature, "a")


def test_labels_are_pinned() -> None:
    words = [
        "request",
        "enrol",
        "roster",
        "cohort",
        "ledger",
        "ledger-head",
        "ledger-report",
        "server-report",
        "join",
        "server",
    ]
    assert [str(label) for label in Label] == [f"fedplat/1/{word}" for word in words]
