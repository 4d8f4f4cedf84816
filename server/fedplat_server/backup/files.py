"""The files of a backup: copied with their hashes, and verified by them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from fedplat.canonical import canonical_json, sha256_hex
from fedplat.durable import make_private_dir, sha256_file, write_atomic, write_atomic_chunks
from fedplat.errors import FedplatError
from fedplat.wire.buffers import Digest

DATABASE = "fedplat.db"
SETTINGS = "server.json"
_MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20
# No name leads out of the folder, whoever wrote the manifest.
_NAME = r"^(fedplat\.db|server\.json|(ca|tls|keys)/[a-z0-9-]+\.pem|runs/[a-z0-9-]+/checkpoints/round-[0-9]+\.[a-z]+)$"
_HINT = "Nothing was restored from it. Take another backup."


class BackupError(FedplatError):
    """A backup that cannot be written or read, or is not what was written."""


class FileFacts(BaseModel):
    """What a file of a backup must be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


class Manifest(BaseModel):
    """What a backup holds. `database` is what the server used; `last_event` and `last_hash` end the event log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    fedplat: str
    made_at: AwareDatetime
    database: Literal["sqlite", "postgresql"]
    last_event: Annotated[int, Field(ge=0)]
    last_hash: Digest
    files: dict[Annotated[str, StringConstraints(pattern=_NAME)], FileFacts]

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(facts.size_bytes for facts in self.files.values())

    def write(self, folder: Path) -> None:
        """Seal it, and with it the backup."""
        sealed = _Sealed(manifest=self, sha256=_hash(self))
        write_atomic(folder / _MANIFEST, sealed.model_dump_json(indent=1).encode())


class _Sealed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Manifest
    sha256: Digest

    @model_validator(mode="after")
    def _unchanged(self) -> Self:
        if self.sha256 != _hash(self.manifest):
            raise ValueError("its hash does not match its content")
        return self


def _hash(manifest: Manifest) -> str:
    return sha256_hex(canonical_json(manifest.model_dump(mode="json")))


@dataclass(frozen=True)
class Copier:
    """Copies files into a private folder, and notes what they are. OSError passes through."""

    folder: Path
    files: dict[str, FileFacts] = field(default_factory=dict)

    def copy(self, name: str, source: BinaryIO) -> None:
        """Copy what is left in `source`; on disk when this returns."""
        digest, size_bytes = hashlib.sha256(), 0

        def chunks() -> Iterator[bytes]:
            nonlocal size_bytes
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
                yield chunk

        make_private_dir((self.folder / name).parent)
        write_atomic_chunks(self.folder / name, chunks())
        self.files[name] = FileFacts(size_bytes=size_bytes, sha256=digest.hexdigest())

    def note(self, name: str) -> None:
        """A file that is in the folder already."""
        self.files[name] = _facts(self.folder / name)

    def drop(self, name: str) -> None:
        """A file that turned out to be no good."""
        (self.folder / name).unlink(missing_ok=True)
        self.files.pop(name, None)


def read_backup(folder: Path) -> Manifest:
    """What the backup in `folder` holds, every byte verified. Raises BackupError that names what is wrong."""
    try:
        manifest = _Sealed.model_validate_json((folder / _MANIFEST).read_bytes()).manifest
        for name, facts in manifest.files.items():
            if _facts(folder / name) != facts:
                raise BackupError(f"the backup {folder} is damaged: {name} is not what was written", hint=_HINT)
    except FileNotFoundError as error:
        raise BackupError(f"the backup {folder} is not complete: {error.filename} is missing", hint=_HINT) from None
    except OSError as error:
        raise BackupError(f"the backup {folder} cannot be read: {error.strerror}", hint=_HINT) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise BackupError(f"the backup {folder} is damaged: {_MANIFEST}: {problem}", hint=_HINT) from None
    return manifest


def _facts(path: Path) -> FileFacts:
    return FileFacts(size_bytes=path.stat().st_size, sha256=sha256_file(path))
