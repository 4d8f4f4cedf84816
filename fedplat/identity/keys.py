"""Private and public keys: ECDSA on P-256, PEM files that only their owner can read."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fedplat.durable import write_atomic
from fedplat.errors import IdentityError, NotFoundError, WireError

MAX_PEM_BYTES = 16_384
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_RESTORE = "Restore it from a backup. A silo that lost its key joins again with a new invite."


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8 PEM, not encrypted: the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def save_key(key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    """Writes the key with mode 0600, atomically, in place of whatever was there."""
    write_atomic(path, private_pem(key))


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Reads a private key. Raises NotFoundError; IdentityError if it is damaged or open to other users."""
    pem = read_private(path)
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(f"{path} holds no private key that can be read", hint=_RESTORE) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{path} holds a key of another kind than EC P-256", hint=_RESTORE)
    return key


def read_private(path: Path) -> bytes:
    """At most MAX_PEM_BYTES of a file that only its owner can read. Raises NotFoundError, IdentityError."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_PEM_BYTES)
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist", hint=_RESTORE) from None
    except OSError as error:
        raise IdentityError(
            f"{path} cannot be read: {error.strerror}", hint="Run this as the user that owns the file."
        ) from error
    if mode & 0o077:
        raise IdentityError(
            f"{path} is open to other users (mode {mode:04o})",
            hint=f"Run: chmod 600 {shlex.quote(str(path))}. If others may have read it, replace the key.",
        )
    return content


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half as SubjectPublicKeyInfo PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def load_public(pem: str) -> ec.EllipticCurvePublicKey:
    """Reads a public key. Raises IdentityError for anything but EC P-256."""
    problem = IdentityError("not a public EC P-256 key in PEM", hint="fedplat makes the key itself at `join`.")
    if len(pem) > MAX_PEM_BYTES:
        raise problem
    try:
        key = load_pem_public_key(pem.encode("ascii"))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise problem from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise problem
    return key


def fingerprint(public: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo in DER, 64 lower-case hex digits."""
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def show_fingerprint(fp: str) -> str:
    """In groups of four, for people who compare it by phone."""
    return " ".join(fp[start : start + 4] for start in range(0, len(fp), 4))


def parse_fingerprint(text: str) -> str:
    """Takes back what `show_fingerprint` prints, or plain hex. Raises WireError."""
    fp = "".join(text.replace(":", " ").split()).lower()
    if not _FINGERPRINT.fullmatch(fp):
        raise WireError(
            f"{text[:80]!r} is not a fingerprint", hint="It has 64 hex digits: `fedplat client fingerprint`."
        )
    return fp
