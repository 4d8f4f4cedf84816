"""What this silo knows of the others: whose key belongs to which name, and who was confirmed out of band.

The server introduces the silos to each other and could invent them. So a key that was seen once is remembered, another
one under the same name is refused, and an administrator can pin a key that was compared by phone (protocol, 4.9).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedplat.durable import write_atomic
from fedplat.errors import HomeError, IdentityError, NotFoundError
from fedplat.identity import parse_fingerprint
from fedplat.names import check_silo_name
from fedplat.wire.buffers import Digest

MAX_PEERS = 4096
"""A server that invents names without end must not fill the disk."""


class Peer(BaseModel):
    """Another silo. `first_seen`: when a roster first named it, UTC; None if it was pinned ahead of that."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str
    fingerprint: Digest
    first_seen: AwareDatetime | None = None
    pinned: bool = False


class _Book(BaseModel):
    """peers.json, sorted by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    peers: tuple[Peer, ...] = Field(default=(), max_length=MAX_PEERS)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        if len({peer.name for peer in self.peers}) != len(self.peers):
            raise ValueError("one name twice")
        return self


class Peers:
    """The file is read afresh at every call, and changed under a lock: the silo's process and the commands of its
    administrator share it. Methods raise IdentityError if it is damaged, HomeError or OSError if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Peer]:
        """Everybody who is known, by name."""
        return list(self._read().values())

    def known(self) -> dict[str, str]:
        """The fingerprint by name."""
        return {name: peer.fingerprint for name, peer in self._read().items()}

    def pinned(self) -> frozenset[str]:
        """The names of those who were confirmed out of band."""
        return frozenset(name for name, peer in self._read().items() if peer.pinned)

    def remember(self, fingerprints: Mapping[str, str]) -> None:
        """Notes the keys of a roster (without this silo's own); on disk when this returns.

        Raises IdentityError, and notes nothing, if one of them is not the key that is known under its name.
        """
        with self._changing() as peers:
            for name, fingerprint in fingerprints.items():
                new = Peer(name=check_silo_name(name), fingerprint=parse_fingerprint(fingerprint))
                peer = peers.get(name, new)
                if peer.fingerprint != new.fingerprint:
                    raise _changed(name)
                peers[name] = peer if peer.first_seen else peer.model_copy(update={"first_seen": _now()})

    def pin(self, name: str, fingerprint: str) -> None:
        """An administrator vouches for this key, in place of any other under that name."""
        with self._changing() as peers:
            pinned = Peer(name=check_silo_name(name), fingerprint=parse_fingerprint(fingerprint), pinned=True)
            known = peers.get(name)
            seen = known.first_seen if known and known.fingerprint == pinned.fingerprint else None
            peers[name] = pinned.model_copy(update={"first_seen": seen})

    def forget(self, name: str) -> None:
        """The next key under this name is taken at first sight. Raises NotFoundError."""
        with self._changing() as peers:
            if peers.pop(name, None) is None:
                raise NotFoundError(
                    f"no silo {name[:80]!r} is known here", hint="`fedplat client peers list` shows who is."
                )

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Peer]]:
        """What is known, to be changed; on disk at the end, or as it was if anything is raised."""
        with self._lock():
            before = self._read()
            peers = dict(before)
            yield peers
            if len(peers) > MAX_PEERS:
                raise IdentityError(
                    f"more than {MAX_PEERS} silos would be known here: the server invents them",
                    hint="`fedplat client peers list` shows them; forget those that nobody knows.",
                )
            if peers != before:
                book = _Book(peers=tuple(sorted(peers.values(), key=lambda peer: peer.name)))
                write_atomic(self._path, book.model_dump_json(indent=2).encode() + b"\n")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time, of all threads and processes."""
        path = self._path.with_suffix(".lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise HomeError(f"{path} cannot be opened: {error.strerror}", hint="Check the silo's home.") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _read(self) -> dict[str, Peer]:
        try:
            book = _Book.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise HomeError(f"{self._path} cannot be read: {error.strerror}", hint="Check the silo's home.") from error
        except ValidationError:
            raise IdentityError(
                f"{self._path} is damaged",
                hint="Restore it from a backup. Or move it away: then everybody is taken at first sight again, and must"
                " be pinned again.",
            ) from None
        return {peer.name: peer for peer in book.peers}


def _changed(name: str) -> IdentityError:
    return IdentityError(
        f"the key of silo {name} is not the one that is known here",
        hint=f"Compare fingerprints by phone, then: fedplat client peers pin {name} FINGERPRINT",
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
