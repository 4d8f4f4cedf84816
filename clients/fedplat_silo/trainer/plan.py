"""What the workers of a run are to be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from fedplat.spec.model import RunSpec

CHECKPOINT = "checkpoint"


class TrainingPlan(BaseModel):
    """One run's training in one silo.

    `gpus`: one worker a GPU, talking by NCCL; empty: `num_workers` on the CPU, by gloo. `threads` are per worker:
    another number of them gives other bits. `run_dir` (0700), the run's folder, holds the local parameters and, in
    `checkpoint_dir`, how far the round under way is. `exclude`: the list of those who opted out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: RunSpec
    silo: str
    data: Path
    exclude: Path | None = None
    run_dir: Path
    num_workers: Annotated[int, Field(ge=1, le=4096)] = 1
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    threads: Annotated[int, Field(ge=1, le=4096)] = 1

    @property
    def checkpoint_dir(self) -> Path:
        """There while a round with `local_checkpoint_steps` is under way."""
        return self.run_dir / CHECKPOINT

    @property
    def num_ranks(self) -> int:
        """How many worker processes there are."""
        return len(self.gpus) or self.num_workers
