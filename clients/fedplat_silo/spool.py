"""Finished updates on disk: written before anything leaves, and sent again, never computed again, when asked again."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedplat.durable import make_private_dir, remove, remove_leftovers, write_atomic_chunks
from fedplat.names import check_run_id
from fedplat.params import Vector
from fedplat.wire.codec import FLOAT32
from fedplat.wire.messages import Digest, TrainReply

log = logging.getLogger(__name__)
_DIGEST_CHARS = 64


class Order(BaseModel):
    """What an update was computed for; anything else is another update. `weights`: SHA-256 of those received."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    round: Annotated[int, Field(ge=1)]
    spec_hash: Digest
    weights: Digest


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Order
    reply: TrainReply


@dataclass(frozen=True)
class Finished:
    """A reply, and the update that goes with it (float32, flat)."""

    reply: TrainReply
    update: Vector


class Spool:
    """A folder for each run, a file for each round: SHA-256 of the rest, header, update."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, order: Order, finished: Finished) -> None:
        """The update is on disk when this returns. Raises OSError."""
        path = self._path(order)
        make_private_dir(path.parent)
        header = _Header(order=order, reply=finished.reply).model_dump_json(exclude_none=True).encode() + b"\n"
        update = np.ascontiguousarray(finished.update, dtype=FLOAT32).data.cast("B")
        digest = hashlib.sha256(header)
        digest.update(update)
        write_atomic_chunks(path, (digest.hexdigest().encode() + b"\n", header, update))

    def get(self, order: Order) -> Finished | None:
        """The update for exactly this order, if it is there whole; a damaged file is removed."""
        path = self._path(order)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            header, update = _read(content)
        except ValueError as error:
            log.warning("a finished update of run %s, round %d is damaged: it is dropped", order.run, order.round)
            log.debug("%s: %s", path, error)
            remove(path)
            return None
        return Finished(header.reply, update) if header.order == order else None

    def forget_before(self, run: str, round_number: int) -> None:
        """Removes the updates of earlier rounds: the server has moved on."""
        folder = self._folder / check_run_id(run)
        if not folder.is_dir():
            return
        remove_leftovers(folder)
        for path in folder.glob("*.update"):
            if path.stem.isdecimal() and int(path.stem) < round_number:
                remove(path)

    def forget(self, run: str) -> None:
        """Removes everything of a run."""
        shutil.rmtree(self._folder / check_run_id(run), ignore_errors=True)

    def _path(self, order: Order) -> Path:
        return self._folder / check_run_id(order.run) / f"{order.round}.update"


def _read(content: bytes) -> tuple[_Header, Vector]:
    """Raises ValueError for anything that `put` did not write."""
    rest = memoryview(content)[_DIGEST_CHARS + 1 :]
    if hashlib.sha256(rest).hexdigest().encode() != content[:_DIGEST_CHARS]:
        raise ValueError("its SHA-256 is another")
    end = content.index(b"\n", _DIGEST_CHARS + 1) + 1
    try:
        header = _Header.model_validate_json(content[_DIGEST_CHARS + 1 : end])
    except ValidationError as error:
        raise ValueError("its header is of another version") from error
    return header, np.frombuffer(content, dtype=FLOAT32, offset=end)
