"""Local parameters on disk: they stay in the silo, and a round that is repeated starts from the same ones."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from fedplat.durable import remove, write_atomic

_NAME = re.compile(r"local-(\d{8})\.safetensors")


class LocalStore:
    """One file for the state after each of the newest rounds, in the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest_before(self, round_number: int) -> int:
        """The last stored round before `round_number`; 0 if there is none."""
        return max((r for r in self._rounds() if r < round_number), default=0)

    def load(self, round_number: int) -> dict[str, Tensor]:
        """The parameters after that round. Raises OSError."""
        return load(self._path(round_number).read_bytes())

    def save(self, round_number: int, tensors: dict[str, Tensor]) -> None:
        """Replaces the parameters of that round, on disk when this returns, and keeps only them and the state
        from which that round started, should it be repeated."""
        write_atomic(self._path(round_number), save({k: t.cpu().contiguous() for k, t in tensors.items()}))
        for other in set(self._rounds()) - {round_number, self.newest_before(round_number)}:
            remove(self._path(other))

    def _rounds(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self._folder.glob("local-*"))
        return [int(match[1]) for match in found if match]

    def _path(self, round_number: int) -> Path:
        return self._folder / f"local-{round_number:08d}.safetensors"
