"""Uploads of the round that is open: on disk before SQL says that they are there, so that a restarted server goes on
with them in the same round. An interface: what fills it may change, what reads it does not.

A file a silo: SHA-256 of the rest, the reply's JSON with its length before it, the update as raw float32.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fedplat.durable import make_private_dir, remove, remove_leftovers, write_atomic_chunks
from fedplat.names import check_silo_name
from fedplat.wire.codec import Parcel
from fedplat.wire.messages import TrainReply

_HEAD = struct.Struct("<32sQ")
_SUFFIX = ".upload"


@dataclass(frozen=True)
class Staging:
    """The folder of one run's open round; nobody else writes to it."""

    folder: Path

    def put(self, silo: str, parcel: Parcel[TrainReply]) -> None:
        """On disk when this returns; replaces an earlier upload of that silo. Raises OSError."""
        make_private_dir(self.folder)
        text = parcel.body.model_dump_json().encode()
        digest = hashlib.sha256(text)
        digest.update(parcel.buffer)
        head = _HEAD.pack(digest.digest(), len(text))
        write_atomic_chunks(self._path(silo), (head, text, memoryview(parcel.buffer)))

    def get(self, silo: str, round_number: int, step: int) -> Parcel[TrainReply] | None:
        """The upload of that silo for that step; None if there is none, or it is damaged (it is asked for again)."""
        try:
            data = self._path(silo).read_bytes()
        except FileNotFoundError:
            return None
        parcel = _parse(data)
        if parcel is None or (parcel.body.silo, parcel.body.round, parcel.body.step) != (silo, round_number, step):
            return None
        return parcel

    def keep_only(self, silos: set[str]) -> list[str]:
        """Removes uploads that no row owns, and what killed writers left; returns the names removed."""
        if not self.folder.exists():
            return []
        remove_leftovers(self.folder)
        gone = [path for path in self.folder.glob(f"*{_SUFFIX}") if path.stem not in silos]
        for path in gone:
            remove(path)
        return [path.stem for path in gone]

    def clear(self) -> None:
        """Removes everything: the round is committed or given up."""
        self.keep_only(set())

    def _path(self, silo: str) -> Path:
        return self.folder / f"{check_silo_name(silo)}{_SUFFIX}"


def _parse(data: bytes) -> Parcel[TrainReply] | None:
    if len(data) < _HEAD.size:
        return None
    digest, length = _HEAD.unpack_from(data)
    rest = memoryview(data)[_HEAD.size :]
    if not hmac.compare_digest(hashlib.sha256(rest).digest(), digest):
        return None
    try:
        body = TrainReply.model_validate_json(bytes(rest[:length]))
    except ValidationError:
        return None
    return Parcel(body, bytes(rest[length:]))
