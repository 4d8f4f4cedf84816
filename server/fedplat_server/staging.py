"""Uploads of the round that is open: on disk before SQL says that they are there, so that a restarted server goes on
with them in the same round. An interface: what fills it may change, what reads it does not. (A large update may be lost
when the power fails, and is asked for again: it is on disk in its silo's spool.)

A file a silo: SHA-256 of the rest, the reply's JSON with its length before it, and the update's raw bytes; a large
update lies beside it in a file of its own, which the road has filled and verified.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fedplat.bufferfiles import Region
from fedplat.durable import make_private_dir, remove, remove_leftovers, write_atomic_chunks
from fedplat.names import check_silo_name
from fedplat.wire.codec import Parcel
from fedplat.wire.messages import TrainReply

_HEAD = struct.Struct("<32sQ")
_REPLY = ".upload"
_BUFFER = ".buffer"
_INCOMING = ".incoming"  # what the road has of a buffer that is on its way


@dataclass(frozen=True)
class Staged:
    """A silo's reply, and where its update lies."""

    reply: TrainReply
    update: Region


@dataclass(frozen=True)
class Staging:
    """The folder of one run's open round; nobody else writes to it but the road, to the paths it is given."""

    folder: Path

    def put(self, silo: str, parcel: Parcel[TrainReply]) -> Staged:
        """On disk when this returns; replaces an earlier upload of that silo. Raises OSError."""
        make_private_dir(self.folder)
        text = parcel.body.model_dump_json(exclude_none=True).encode()
        digest = hashlib.sha256(text)
        digest.update(parcel.buffer)
        head = _HEAD.pack(digest.digest(), len(text))
        write_atomic_chunks(self._path(silo, _REPLY), (head, text, memoryview(parcel.buffer)))
        return self._staged(silo, parcel.body, len(head) + len(text), len(parcel.buffer))

    def get(self, silo: str, round_number: int, step: int) -> Staged | None:
        """The upload of that silo for that step; None if there is none, or it is damaged (it is asked for again)."""
        try:
            data = self._path(silo, _REPLY).read_bytes()
        except FileNotFoundError:
            return None
        reply, start = _parse(data)
        if reply is None or (reply.silo, reply.round, reply.step) != (silo, round_number, step):
            return None
        staged = self._staged(silo, reply, start, len(data) - start)
        return staged if reply.buffer is None or staged.update.is_good(reply.buffer) else None

    def buffer_path(self, silo: str) -> Path:
        """Where a large update lies when it is whole."""
        return self._path(silo, _BUFFER)

    def incoming_path(self, silo: str) -> Path:
        """Where a large update lies while it comes."""
        return self._path(silo, _INCOMING)

    @property
    def weights_path(self) -> Path:
        """The weights as they go to the silos, where that is not how the checkpoint has them."""
        return self.folder / "weights.outgoing"

    def keep_only(self, silos: Set[str], coming: Set[str] = frozenset()) -> list[str]:
        """Removes uploads but those of `silos`, and what is on its way but from `coming`; what killed writers left
        goes too. Returns the names of the uploads removed."""
        if not self.folder.exists():
            return []
        remove_leftovers(self.folder)
        kept = {_REPLY: silos, _BUFFER: silos | coming, _INCOMING: coming}
        gone = [path for path in self.folder.iterdir() if path.stem not in kept.get(path.suffix, set())]
        for path in gone:
            remove(path)
        return [path.stem for path in gone if path.suffix == _REPLY]

    def clear(self) -> None:
        """Removes everything: the round is committed or given up."""
        self.keep_only(set())

    def _staged(self, silo: str, reply: TrainReply, start: int, size_bytes: int) -> Staged:
        if reply.buffer is not None:
            return Staged(reply, Region(self.buffer_path(silo), 0, reply.buffer.size_bytes))
        return Staged(reply, Region(self._path(silo, _REPLY), start, size_bytes))

    def _path(self, silo: str, suffix: str) -> Path:
        return self.folder / f"{check_silo_name(silo)}{suffix}"


def _parse(data: bytes) -> tuple[TrainReply | None, int]:
    """The reply, and where its update begins."""
    if len(data) < _HEAD.size:
        return None, 0
    digest, length = _HEAD.unpack_from(data)
    rest = memoryview(data)[_HEAD.size :]
    if not hmac.compare_digest(hashlib.sha256(rest).digest(), digest):
        return None, 0
    try:
        return TrainReply.model_validate_json(bytes(rest[:length])), _HEAD.size + length
    except ValidationError:
        return None, 0
