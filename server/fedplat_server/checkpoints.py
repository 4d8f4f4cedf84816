"""What a run needs to go on after a crash: per round one safetensors file and one manifest with its hashes.

The manifest is written last and carries its own hash, so a checkpoint is there completely or not at all, and a
changed byte in either file is found. The weights file is a plain safetensors file: anybody can load it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors.numpy import load_file

from fedplat.canonical import canonical_json, sha256_hex
from fedplat.durable import make_private_dir, remove, remove_leftovers, sha256_file, write_atomic, write_atomic_chunks
from fedplat.errors import FedplatError, LayoutError
from fedplat.params import Layout, Vector
from fedplat.wire.messages import Digest, WireParameter, layout_from_wire, layout_to_wire

State = Mapping[str, npt.NDArray[np.floating]]

_STATE = "fedplat.strategy/"
_DTYPES = {"float32": "F32", "float64": "F64"}


class CheckpointError(FedplatError):
    """A checkpoint that cannot be written or read, or is not what was written."""


class Manifest(BaseModel):
    """What belongs to a checkpoint's weights file. `layout_fingerprint` is that of `layout`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    round: Annotated[int, Field(ge=0)]
    created_at: AwareDatetime
    spec_hash: Digest
    layout_fingerprint: Digest
    layout: tuple[WireParameter, ...]
    file: str
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Digest
    extra: dict[str, JsonValue]


@dataclass(frozen=True)
class Saved:
    """Where a checkpoint lies. `sha256` is the weights file's."""

    path: Path
    sha256: str
    manifest_path: Path


@dataclass(frozen=True)
class Checkpoint:
    """The model after a round (0: the initial one), and what the strategy kept."""

    manifest: Manifest
    layout: Layout
    weights: Vector
    strategy_state: State


class Checkpoints:
    """The checkpoints of one run, in a folder that nobody else writes to."""

    def __init__(self, folder: Path, spec_hash: str) -> None:
        self._folder = folder
        self._spec_hash = spec_hash

    def save(
        self,
        round_number: int,
        weights: Vector,
        layout: Layout,
        strategy_state: State | None = None,
        manifest_extra: Mapping[str, JsonValue] | None = None,
    ) -> Saved:
        """On disk when this returns; replaces an earlier checkpoint of this round. CheckpointError if it can't."""
        path, manifest_path = self._paths(round_number)
        with _said(path, "cannot be written", hint="Check the disk's free space and the folder's owner."):
            make_private_dir(self._folder)
            remove(manifest_path)  # an old manifest beside a new file would read as damage
            size_bytes, sha256 = _write(path, weights, layout, strategy_state or {})
            manifest = Manifest(
                round=round_number,
                created_at=datetime.now(UTC),
                spec_hash=self._spec_hash,
                layout_fingerprint=layout.fingerprint,
                layout=layout_to_wire(layout),
                file=path.name,
                size_bytes=size_bytes,
                sha256=sha256,
                extra=dict(manifest_extra or {}),
            )
            write_atomic(manifest_path, _seal(manifest.model_dump(mode="json")))
        return Saved(path, sha256, manifest_path)

    def load(self, round_number: int) -> Checkpoint:
        """The checkpoint of a round, every byte verified. CheckpointError names the file and what is wrong."""
        path, manifest_path = self._paths(round_number)
        with _said(manifest_path, "cannot be read"):
            manifest = _unseal(manifest_path, manifest_path.read_bytes())
        if (manifest.spec_hash, manifest.round) != (self._spec_hash, round_number):
            raise _wrong(manifest_path, f"belongs to round {manifest.round} of spec {manifest.spec_hash[:12]}")
        with _said(path, "cannot be read"):
            _verify(path, manifest)
            arrays = load_file(path)
        layout = layout_from_wire(manifest.layout)
        state = {name.removeprefix(_STATE): a for name, a in arrays.items() if name.startswith(_STATE)}
        return Checkpoint(manifest, layout, layout.join(arrays), state)

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
        checkpoint = self.load(round_number)
        other.save(round_number, checkpoint.weights, checkpoint.layout, checkpoint.strategy_state)

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


def export_weights(path: Path, weights: Vector, layout: Layout) -> str:
    """Writes the shared parameters as float32 to a safetensors file and returns its SHA-256."""
    with _said(path, "cannot be written", hint="Choose a file in a folder that exists and that you can write to."):
        return _write(path, weights, layout, {})[1]


def _write(path: Path, weights: Vector, layout: Layout, state: State) -> tuple[int, str]:
    """Size in bytes and SHA-256. Equal contents give equal bytes: safetensors' own writer orders its metadata by
    chance and needs the whole file in memory, so the format (header length, JSON header, data) is written here."""
    arrays: dict[str, npt.NDArray[np.floating]] = {}
    for name, view in layout.split(weights).items():
        if name.startswith(_STATE) or name == "__metadata__":
            raise LayoutError(f"a shared parameter cannot be named {name!r}", hint="Rename it in the task's model.")
        arrays[name] = view
    arrays |= {_STATE + name: state[name] for name in sorted(state)}
    digest = hashlib.sha256()
    size_bytes = 0

    def counted() -> Iterator[bytes | memoryview]:
        nonlocal size_bytes
        for chunk in _chunks(arrays):
            digest.update(chunk)
            size_bytes += len(chunk)
            yield chunk

    write_atomic_chunks(path, counted())
    return size_bytes, digest.hexdigest()


def _chunks(arrays: Mapping[str, npt.NDArray[np.floating]]) -> Iterator[bytes | memoryview]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
        yield flat.view(np.uint8).data


def _seal(body: Mapping[str, JsonValue]) -> bytes:
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
