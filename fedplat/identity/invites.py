"""The invite: one line that an administrator hands to a silo, and that works once."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import struct
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fedplat.errors import IdentityError, NotFoundError, WireError
from fedplat.identity.keys import parse_fingerprint
from fedplat.identity.signing import enc
from fedplat.names import check_address, check_silo_name

LIFETIME_S = 24 * 3600
SECRET_BYTES = 16
MAX_INVITE_CHARS = 4096
_PREFIX = "fedplat-invite-1:"
_ANY_VERSION = re.compile(r"fedplat-invite-([0-9]{1,9}):")
_HEAD = struct.Struct(f">32s{SECRET_BYTES}sQB")  # CA fingerprint, secret, expiry, length of the silo's name
_AGAIN = "Copy the whole line again, from `fedplat-invite-` to its end, or pass it as a file: --invite @FILE."


@dataclass(frozen=True)
class Invite:
    """What a silo needs to join: where the server is, how to know it, and a secret to be known by."""

    server: str
    """`host:port`"""
    ca_fingerprint: str
    silo: str
    secret: bytes = field(repr=False)
    expires_at: int
    """Seconds since 1970, UTC."""

    def __post_init__(self) -> None:
        check_address(self.server)
        check_silo_name(self.silo)
        if parse_fingerprint(self.ca_fingerprint) != self.ca_fingerprint:
            raise WireError("the CA's fingerprint in an invite must be 64 lower-case hex digits")
        if len(self.secret) != SECRET_BYTES:
            raise WireError(f"the secret of an invite must have {SECRET_BYTES} bytes")
        if not 0 <= self.expires_at < 2**64:
            raise WireError("the expiry of an invite is out of range")

    @classmethod
    def new(cls, server: str, ca_fingerprint: str, silo: str, now_s: float, lifetime_s: int = LIFETIME_S) -> Self:
        """A fresh invite with a secret from the OS. Raises WireError for a bad name or address."""
        return cls(server, ca_fingerprint, silo, secrets.token_bytes(SECRET_BYTES), int(now_s) + lifetime_s)

    def encode(self) -> str:
        """One line of text."""
        silo = self.silo.encode("ascii")
        head = _HEAD.pack(bytes.fromhex(self.ca_fingerprint), self.secret, self.expires_at, len(silo))
        payload = head + silo + self.server.encode("ascii")
        return _PREFIX + _to_text(payload + _checksum(payload))

    @classmethod
    def parse(cls, line: str) -> Self:
        """Reads the line; white space anywhere is ignored, because mail programs break long lines.

        Raises WireError, with another message for no invite, another version, and damage.
        """
        text = "".join(line[:MAX_INVITE_CHARS].split())
        version = _ANY_VERSION.match(text)
        if not version:
            raise WireError("this is not an invite", hint=_AGAIN)
        if not text.startswith(_PREFIX):
            raise WireError(
                f"this invite is of another version ({version[1]})",
                hint="Server and silo need the same version of fedplat: compare `fedplat --version`.",
            )
        payload = _checked(text.removeprefix(_PREFIX))
        return cls._unpack(payload)

    def check_time(self, now_s: float) -> None:
        """Raises IdentityError if the invite has expired."""
        if now_s >= self.expires_at:
            raise IdentityError(
                f"the invite for silo {self.silo} expired {now_s - self.expires_at:.0f} s ago",
                hint=f"Ask the server's administrator for a new one: fedplat silo invite {self.silo}",
            )

    @classmethod
    def _unpack(cls, payload: bytes) -> Self:
        try:
            fingerprint, secret, expires_at, silo_size = _HEAD.unpack_from(payload)
            names = payload[_HEAD.size :].decode("ascii")
        except (struct.error, UnicodeDecodeError):
            raise _damaged() from None
        return cls(names[silo_size:], fingerprint.hex(), names[:silo_size], secret, expires_at)


def secret_hash(secret: bytes) -> str:
    """What the server keeps of an invite's secret, hex. The secret has 128 random bits: no salt is needed."""
    return hashlib.sha256(enc("fedplat/1/invite", secret)).hexdigest()


def read_invite(argument: str) -> Invite:
    """Reads the value of --invite: the line itself, `@FILE`, or `-` for one line of standard input.

    Raises NotFoundError for a file that cannot be read, WireError as `Invite.parse`.
    """
    if argument == "-":
        return Invite.parse(sys.stdin.readline(MAX_INVITE_CHARS))
    if not argument.startswith("@"):
        return Invite.parse(argument)
    path = Path(argument[1:]).expanduser()
    try:
        with path.open("rb") as file:
            content = file.read(MAX_INVITE_CHARS)
    except OSError as error:
        raise NotFoundError(
            f"the invite file {path} cannot be read: {error.strerror}", hint="Check the path after the @."
        ) from error
    return Invite.parse(content.decode("utf-8", "replace"))


def _checksum(payload: bytes) -> bytes:
    # CRC-32 finds every single error burst of up to 32 bits, five neighbouring letters, with certainty.
    return zlib.crc32(_PREFIX.encode("ascii") + payload).to_bytes(4, "big")


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _checked(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise _damaged() from None
    # The last letter has spare bits that the decoder drops: only one spelling is ours.
    if _to_text(data) != text or _checksum(data[:-4]) != data[-4:]:
        raise _damaged()
    return data[:-4]


def _damaged() -> WireError:
    return WireError("the invite was damaged in copying", hint=_AGAIN)
