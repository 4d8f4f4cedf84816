"""What a run needs to go on after a crash: per round one safetensors file and one manifest with its hashes.

The manifest is written last and carries its own hash, so a checkpoint is there completely or not at all, and a
changed byte in either file is found. The weights file is a plain safetensors file: anybody can load it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fedplat.bufferfiles import Region
from fedplat.canonical import canonical_json, sha256_hex
from fedplat.durable import (
    AtomicFile,
    make_private_dir,
    remove,
    remove_leftovers,
    sha256_file,
    write_atomic,
)
from fedplat.errors import FedplatError, LayoutError
from fedplat.params import Layout, Vector
from fedplat.spec.model import Precision
from fedplat.wire.buffers import BufferRef, Digest, PieceHasher, to_bytes
from fedplat.wire.messages import WireParameter, layout_from_wire, layout_to_wire
from fedplat_server.vectors import BLOCK, StoredVector

State = Mapping[str, Vector]
"""What a strategy keeps, by slot: flat vectors in the order of the weights."""

_STATE = "fedplat.strategy/"
_HEAD_BYTES = 8


class CheckpointError(FedplatError):
    """A checkpoint that cannot be written or read, or is not what was written."""


class Manifest(BaseModel):
    """What belongs to a checkpoint's weights file. `layout_fingerprint` is that of `layout`; `weights` names the bytes
    of the weights in it, `state` the strategy's slots after them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[2] = 2
    round: Annotated[int, Field(ge=0)]
    created_at: AwareDatetime
    spec_hash: Digest
    layout_fingerprint: Digest
    layout: tuple[WireParameter, ...]
    file: str
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Digest
    weights: BufferRef
    state: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """The model after a round (0: the initial one), and what the strategy kept: where they lie, not in memory."""

    manifest: Manifest
    path: Path
    layout: Layout
    weights: StoredVector
    state: Mapping[str, StoredVector]

    @property
    def sha256(self) -> str:
        """Of the weights file."""
        return self.manifest.sha256


class Checkpoints:
    """The checkpoints of one run, in a folder that nobody else writes to."""

    def __init__(self, folder: Path, spec_hash: str) -> None:
        self._folder = folder
        self._spec_hash = spec_hash

    def save(self, round_number: int, weights: Vector | StoredVector, layout: Layout) -> Checkpoint:
        """A checkpoint without a strategy's state; as `write`."""
        with self.write(round_number, layout) as writer:
            blocks = weights.blocks() if isinstance(weights, StoredVector) else (weights,)
            for block in blocks:
                writer.add(block)
            return writer.commit()

    def write(self, round_number: int, layout: Layout) -> CheckpointWriter:
        """Begin a checkpoint; it replaces an earlier one of this round. CheckpointError if it can't."""
        path, manifest_path = self._paths(round_number)
        with _writing(path):
            make_private_dir(self._folder)
            return CheckpointWriter(path, manifest_path, round_number, self._spec_hash, layout)

    def load(self, round_number: int) -> Checkpoint:
        """The checkpoint of a round, every byte verified. CheckpointError names the file and what is wrong."""
        path, manifest_path = self._paths(round_number)
        with _said(manifest_path, "cannot be read"):
            manifest = _unseal(manifest_path, manifest_path.read_bytes())
        if (manifest.spec_hash, manifest.round) != (self._spec_hash, round_number):
            raise _wrong(manifest_path, f"belongs to round {manifest.round} of spec {manifest.spec_hash[:12]}")
        with _said(path, "cannot be read"):
            _verify(path, manifest)
            return _checkpoint(path, manifest)

    def verified(self, round_number: int) -> Path:
        """The weights file of a round, every byte verified."""
        self.load(round_number)
        return self._paths(round_number)[0]

    def latest_good(self) -> tuple[Checkpoint | None, tuple[CheckpointError, ...]]:
        """The newest checkpoint that verifies, and what is wrong with the newer ones, newest first."""
        damaged: list[CheckpointError] = []
        for round_number in reversed(self.rounds()):
            try:
                return self.load(round_number), tuple(damaged)
            except CheckpointError as error:
                damaged.append(error)
        return None, tuple(damaged)

    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, good or not, in order."""
        stems = (path.stem.removeprefix("round-") for path in self._folder.glob("round-*.json"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def prune(self, keep_last: int, *, every: int = 1, best: int | None = None) -> list[int]:
        """Removes all checkpoints but the newest, the last `keep_last` of every `every`-th round, and the `best` one;
        says which rounds went."""
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}, but a run needs its last checkpoint")
        there = self.rounds()
        kept = {*there[-1:], *[r for r in there if r % every == 0][-keep_last:], best}
        return self._remove([r for r in there if r not in kept])

    def discard_after(self, round_number: int) -> list[int]:
        """Removes checkpoints of rounds that were not committed, and what killed writers and removers left."""
        if self._folder.exists():
            remove_leftovers(self._folder)
        for path in self._folder.glob("round-*.safetensors"):
            if not path.with_suffix(".json").exists():
                remove(path)
        return self._remove([r for r in self.rounds() if r > round_number])

    def copy_to(self, other: Checkpoints, round_number: int) -> None:
        """Puts a verified copy of a checkpoint into another run's folder. CheckpointError if it is not good."""
        old = self.load(round_number)
        with other.write(round_number, old.layout) as writer:
            for start in range(0, old.weights.size, BLOCK):
                stop = min(start + BLOCK, old.weights.size)
                writer.add(old.weights.read(start, stop), {k: v.read(start, stop) for k, v in old.state.items()})
            writer.commit()

    def _remove(self, gone: list[int]) -> list[int]:
        for round_number in gone:
            path, manifest_path = self._paths(round_number)
            with _said(path, "cannot be removed"):
                remove(manifest_path)
                remove(path)
        return gone

    def _paths(self, round_number: int) -> tuple[Path, Path]:
        stem = self._folder / f"round-{round_number:07d}"
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")


class CheckpointWriter:
    """A checkpoint that is written block by block, and is there only after `commit`.

    Equal contents give equal bytes: safetensors' own writer orders its metadata by chance and needs everything in
    memory, so the format (header length, JSON header, data) is written here.
    """

    def __init__(self, path: Path, manifest_path: Path, round_number: int, spec_hash: str, layout: Layout) -> None:
        self._path, self._manifest_path = path, manifest_path
        self._round, self._spec_hash, self._layout = round_number, spec_hash, layout
        self._file = AtomicFile(path)
        self._slots: tuple[str, ...] | None = None
        self._data_at = 0
        self._done = 0
        self._whole = hashlib.sha256()
        self._pieces = PieceHasher()
        self._hashing = ThreadPoolExecutor(1)  # beside the averaging, which is the other half of the work
        self._hashed: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """What is not committed is dropped."""
        self._hashing.shutdown()
        self._file.__exit__(kind, error, at)

    def add(self, weights: Vector, state: State | None = None) -> None:
        """The next elements of the weights, and of each slot of the strategy's state."""
        state = state or {}
        with _writing(self._path):
            if self._slots is None:
                self._begin(tuple(sorted(state)))
            data = to_bytes(weights, Precision.FP32)
            self._hash_beside(data)
            self._file.write(data, at=self._at(0))
            for number, slot in enumerate(self._slots or (), start=1):
                self._file.write(to_bytes(state[slot], Precision.FP32), at=self._at(number))
        self._done += len(weights)

    def commit(self) -> Checkpoint:
        """On disk when this returns."""
        if self._done != self._layout.size:
            raise LayoutError(f"a checkpoint of {self._done} elements does not fit a layout of {self._layout.size}")
        with _writing(self._path):
            manifest = self._manifest()
            self._file.sync()
            remove(self._manifest_path)  # an old manifest beside a new file would read as damage
            self._file.rename()
            write_atomic(self._manifest_path, _seal(manifest.model_dump(mode="json")))
            return _checkpoint(self._path, manifest)

    def _hash_beside(self, data: memoryview) -> None:
        if self._hashed is not None:
            self._hashed.result()
        self._hashed = self._hashing.submit(self._hash, data)

    def _hash(self, data: memoryview) -> None:
        self._whole.update(data)
        self._pieces.update(data)

    def _begin(self, slots: tuple[str, ...]) -> None:
        self._slots = slots
        header = _header(self._layout, slots)
        self._data_at = len(header)
        self._file.write(header)
        self._whole.update(header)

    def _at(self, section: int) -> int:
        return self._data_at + 4 * (section * self._layout.size + self._done)

    def _manifest(self) -> Manifest:
        if self._hashed is not None:
            self._hashed.result()
        slots = self._slots or ()
        end = self._data_at + 4 * self._layout.size * (1 + len(slots))
        # the slots lie behind the weights and were written beside them: their bytes are hashed last
        for start in range(self._data_at + 4 * self._layout.size, end, 4 * BLOCK):
            self._whole.update(self._file.read(start, min(4 * BLOCK, end - start)))
        return Manifest(
            round=self._round,
            created_at=datetime.now(UTC),
            spec_hash=self._spec_hash,
            layout_fingerprint=self._layout.fingerprint,
            layout=layout_to_wire(self._layout),
            file=self._path.name,
            size_bytes=end,
            sha256=self._whole.hexdigest(),
            weights=self._pieces.ref(),
            state=slots,
        )


def export_weights(path: Path, weights: Vector, layout: Layout) -> str:
    """Writes the shared parameters as float32 to a safetensors file and returns its SHA-256."""
    with _said(path, "cannot be written", hint="Choose a file in a folder that exists and that you can write to."):
        chunks = _header(layout, ()), to_bytes(weights, Precision.FP32)
        with AtomicFile(path) as file:
            for chunk in chunks:
                file.write(chunk)
            file.commit()
        return sha256_file(path)


def _header(layout: Layout, slots: Iterable[str]) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for prefix in ("", *(f"{_STATE}{slot}/" for slot in slots)):
        for parameter in layout.shared:
            if parameter.name.startswith(_STATE) or parameter.name == "__metadata__":
                raise LayoutError(
                    f"a shared parameter cannot be named {parameter.name!r}", hint="Rename it in the task's model."
                )
            start, end = end, end + 4 * parameter.size
            described[prefix + parameter.name] = {
                "dtype": "F32",
                "shape": parameter.shape,
                "data_offsets": [start, end],
            }
    text = canonical_json(described).encode()
    text += b" " * (-len(text) % _HEAD_BYTES)
    return len(text).to_bytes(_HEAD_BYTES, "little") + text


def _checkpoint(path: Path, manifest: Manifest) -> Checkpoint:
    """Where everything lies in a file that is as its manifest says."""
    layout = layout_from_wire(manifest.layout)
    section = 4 * layout.size
    data_at = manifest.size_bytes - section * (1 + len(manifest.state))
    parts = [StoredVector(Region(path, data_at + i * section, section)) for i in range(1 + len(manifest.state))]
    return Checkpoint(manifest, path, layout, parts[0], dict(zip(manifest.state, parts[1:], strict=True)))


def _seal(body: Mapping[str, object]) -> bytes:
    return canonical_json({**body, "manifest_sha256": sha256_hex(canonical_json(body))}).encode()


def _unseal(path: Path, data: bytes) -> Manifest:
    try:
        body = json.loads(data)
        del body["manifest_sha256"]
        sealed = _seal(body)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _wrong(path, "is damaged: it is no manifest") from None
    if sealed != data:
        raise _wrong(path, "is damaged: its hash does not match its content")
    try:
        return Manifest.model_validate(body)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise _wrong(path, f"is a manifest that this version does not understand ({fields})") from None


def _verify(path: Path, manifest: Manifest) -> None:
    size_bytes = path.stat().st_size
    if size_bytes != manifest.size_bytes:
        raise _wrong(path, f"has {size_bytes} bytes instead of {manifest.size_bytes}")
    if sha256_file(path) != manifest.sha256:
        raise _wrong(path, "is damaged: its SHA-256 is not the manifest's")


def _wrong(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} {problem}", hint="An earlier round's checkpoint, or a backup, may still be good."
    )


@contextmanager
def _said(path: Path, problem: str, *, hint: str = "") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} {problem}: {error.filename} is missing", hint=hint) from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} {problem}: {error.strerror}", hint=hint) from error


def _writing(path: Path) -> AbstractContextManager[None]:
    return _said(path, "cannot be written", hint="Check the disk's free space and the folder's owner.")
