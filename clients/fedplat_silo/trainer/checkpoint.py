"""Local checkpoints: from where a round under way can go on after a kill. They stay in the run's folder.

Every rank writes a part of its own; rank 0 names them all by their hashes in a manifest, and only then do the older
parts go. So the manifest on disk is whole at any instant, and what it does not name is left over from a kill.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load, save
from torch import Tensor

from fedplat.durable import make_private_dir, remove, sha256_file, write_atomic
from fedplat.wire.buffers import Digest
from fedplat_silo.trainer.ddp import Place, from_first, gather_bytes

log = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_NOTHING = bytes(hashlib.sha256().digest_size)


class Key(BaseModel):
    """What a checkpoint belongs to; in any other round, with other weights, data or software it is foreign."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    round: int
    spec_hash: Digest
    weights: Digest
    """SHA-256 of the weights that were received."""
    num_examples: int
    num_ranks: int
    device: str
    software: tuple[str, ...]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Key
    step: Annotated[int, Field(ge=1)]
    parts: tuple[Digest, ...]


class Checkpoints:
    """The local checkpoint of one round, at one rank. All ranks MUST call `newest` and `save` at the same steps."""

    def __init__(self, folder: Path, key: Key, place: Place) -> None:
        self._folder = folder
        self._key = key
        self._place = place
        self._step = 0

    def newest(self) -> int:
        """How many steps are on disk, the same at every rank; 0 if the round begins anew. What is damaged or
        foreign is logged and removed. Raises OSError."""
        if self._place.rank == 0:
            make_private_dir(self._folder)
            self._step = self._find()
            self._remove_others()
        self._step = from_first(self._step, self._place)
        return self._step

    def load(self) -> dict[str, Tensor]:
        """Rank 0's tensors, but this rank's own where it has some of the same name. Raises OSError."""
        tensors: dict[str, Tensor] = {}
        for rank in sorted({0, self._place.rank}):
            tensors |= load(self._part(self._step, rank).read_bytes())
        return tensors

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the checkpoint. One that cannot be written is logged, and the older one stays."""
        digests = gather_bytes(self._write_part(step, tensors), self._place)
        if self._place.rank == 0 and _NOTHING not in digests:
            self._commit(step, tuple(digest.hex() for digest in digests))

    def _find(self) -> int:
        path = self._folder / _MANIFEST
        if not path.exists():
            return 0
        try:
            manifest = _Manifest.model_validate_json(path.read_bytes())
            parts = [self._part(manifest.step, rank) for rank in range(self._place.num_ranks)]
            is_whole = tuple(map(sha256_file, parts)) == manifest.parts
        except (OSError, ValidationError) as error:
            log.warning("the local checkpoint cannot be read, so the round begins anew: %s", error)
            return 0
        if manifest.key != self._key:
            log.warning("a local checkpoint of something else (round %d) is dropped", manifest.key.round)
        elif not is_whole:
            log.warning("the local checkpoint of step %d is damaged, so the round begins anew", manifest.step)
        else:
            log.info("round %d goes on after step %d", self._key.round, manifest.step)
            return manifest.step
        return 0

    def _remove_others(self) -> None:
        """The manifest first: it must not name what is gone."""
        ranks = range(self._place.num_ranks if self._step else 0)
        kept = {self._part(self._step, rank).name for rank in ranks} | ({_MANIFEST} if self._step else set())
        for path in sorted(self._folder.iterdir(), key=lambda path: path.name != _MANIFEST):
            if path.name not in kept:
                remove(path)

    def _write_part(self, step: int, tensors: Mapping[str, Tensor]) -> bytes:
        """Returns the SHA-256, `_NOTHING` if the disk did not take it."""
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        try:
            write_atomic(self._part(step, self._place.rank), data)
        except OSError as error:
            log.warning("the local checkpoint of step %d was not written: %s", step, error)
            return _NOTHING
        return hashlib.sha256(data).digest()

    def _commit(self, step: int, digests: tuple[str, ...]) -> None:
        manifest = _Manifest(key=self._key, step=step, parts=digests)
        try:
            write_atomic(self._folder / _MANIFEST, manifest.model_dump_json().encode())
            for rank in range(self._place.num_ranks if self._step else 0):
                remove(self._part(self._step, rank))
        except OSError as error:
            log.warning("the local checkpoint of step %d was not written: %s", step, error)
            return
        self._step = step

    def _part(self, step: int, rank: int) -> Path:
        return self._folder / f"step-{step}.rank-{rank}.safetensors"
