"""Finished updates on disk: written before anything leaves, and sent again, never computed again, when asked again."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedplat.bufferfiles import Region, write_buffer, write_scratch
from fedplat.durable import AtomicFile, make_private_dir, remove, remove_leftovers, sync_files
from fedplat.ledger import Event
from fedplat.names import check_run_id
from fedplat.params import Vector
from fedplat.privacy.events import SampledGaussian
from fedplat.spec.model import Precision
from fedplat.wire.buffers import BufferRef, Digest, to_bytes
from fedplat.wire.messages import TrainReply

log = logging.getLogger(__name__)
_DIGEST_CHARS = 64
_BLOCK = 1 << 20  # elements
_HEADER, _BUFFER, _MASKED = ".update", ".buffer", ".masked"
_WEIGHTS_ROUND = 0
FIGURES = "figures"


class Order(BaseModel):
    """What an update was computed for; anything else is another update. `weights`: digest of those received.
    `vector`: digest of how it lies in a masked vector; in a plain run empty, or FIGURES if no update is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    round: Annotated[int, Field(ge=1)]
    spec_hash: Digest
    weights: Digest
    vector: str = ""


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Order
    reply: TrainReply
    ref: BufferRef
    released: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Stored:
    """A vector on disk as it is sent, byte for byte."""

    region: Region
    ref: BufferRef


@dataclass(frozen=True)
class Finished:
    """A reply, the update or the figures that go with it, and what is noised in them."""

    reply: TrainReply
    update: Stored
    released: tuple[SampledGaussian, ...] = ()


class Spool:
    """A folder for each run; for each round the update's raw bytes, and then a header that names them: SHA-256 of the
    rest, JSON."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, run: str) -> Path:
        """Where all of a run is, also what is fetched for it."""
        return self._folder / check_run_id(run)

    def put(
        self, order: Order, reply: TrainReply, blocks: Iterable[memoryview], released: tuple[SampledGaussian, ...] = ()
    ) -> Finished:
        """Keeps the update's bytes. A kill cannot undo it; a power cut can, before `settle`. Raises OSError."""
        path = self._path(order.run, order.round, _HEADER)
        if path.exists():
            remove(path)  # it would name bytes that are not there any more
        stored = self._write(order.run, order.round, _BUFFER, blocks)
        kept = _Header(order=order, reply=reply, ref=stored.ref, released=tuple(map(Event.of, released)))
        header = kept.model_dump_json(exclude_none=True).encode()
        with AtomicFile(path) as file:
            file.write(hashlib.sha256(header).hexdigest().encode() + b"\n" + header)
            file.publish()
        return Finished(reply, stored, released)

    def settle(self, order: Order) -> None:
        """What `put` kept is on disk when this returns. Raises OSError."""
        sync_files(*(self._path(order.run, order.round, suffix) for suffix in (_BUFFER, _HEADER)))

    def put_weights(self, run: str, weights: Vector, precision: Precision) -> Stored:
        """The initial weights, kept until the first round. Raises OSError."""
        return self._write(run, _WEIGHTS_ROUND, _BUFFER, in_blocks(weights, precision))

    def put_masked(self, order: Order, blocks: Iterable[memoryview]) -> Stored:
        """A masked vector on its way; it can be made again from what `put` keeps. Raises OSError."""
        path = self._path(order.run, order.round, _MASKED)
        ref = write_scratch(path, blocks)
        return Stored(Region(path, 0, ref.size_bytes), ref)

    def forget_masked(self, order: Order) -> None:
        """It has arrived."""
        self._path(order.run, order.round, _MASKED).unlink(missing_ok=True)

    def get(self, order: Order) -> Finished | None:
        """The update for exactly this order, if it is there whole; a damaged one is removed."""
        path = self._path(order.run, order.round, _HEADER)
        try:
            header = _read(path)
            if header is None or header.order != order:
                return None
            stored = Stored(Region(self._path(order.run, order.round, _BUFFER), 0, header.ref.size_bytes), header.ref)
            if not stored.region.is_good(header.ref):
                raise ValueError("its bytes are others")
        except ValueError as error:
            log.warning("a finished update of run %s, round %d is damaged: it is dropped", order.run, order.round)
            log.debug("%s: %s", path, error)
            remove(path)
            remove(path.with_suffix(_BUFFER))
            return None
        return Finished(header.reply, stored, tuple(event.fact() for event in header.released))

    def forget_before(self, run: str, round_number: int) -> None:
        """Removes the updates of earlier rounds: the server has moved on."""
        folder = self.folder(run)
        if not folder.is_dir():
            return
        remove_leftovers(folder)
        # headers first: none may name bytes that are gone
        for path in (p for suffix in (_HEADER, _BUFFER, _MASKED) for p in folder.glob(f"*{suffix}")):
            if path.stem.isdecimal() and int(path.stem) < round_number:
                remove(path)

    def forget(self, run: str) -> None:
        """Removes everything of a run."""
        shutil.rmtree(self.folder(run), ignore_errors=True)

    def _write(self, run: str, round_number: int, suffix: str, blocks: Iterable[memoryview]) -> Stored:
        path = self._path(run, round_number, suffix)
        make_private_dir(path.parent)
        ref = write_buffer(path, blocks)
        return Stored(Region(path, 0, ref.size_bytes), ref)

    def _path(self, run: str, round_number: int, suffix: str) -> Path:
        return self.folder(run) / f"{round_number}{suffix}"


def in_blocks(vector: Vector, precision: Precision) -> Iterator[memoryview]:
    """The vector's bytes as they travel, a few megabytes at a time."""
    return (to_bytes(vector[start : start + _BLOCK], precision) for start in range(0, vector.size, _BLOCK))


def _read(path: Path) -> _Header | None:
    """Raises ValueError for anything that `put` did not write."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, text = content[:_DIGEST_CHARS], content[_DIGEST_CHARS + 1 :]
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError("its SHA-256 is another")
    try:
        return _Header.model_validate_json(text)
    except ValidationError as error:
        raise ValueError("its header is of another version") from error
