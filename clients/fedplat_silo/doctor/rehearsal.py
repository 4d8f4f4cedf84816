"""A run's first batch, by the workers that would train it. Nothing leaves, and nothing stays."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedplat.spec import RunSpec
from fedplat_silo.data.exclusion import exclusion_file
from fedplat_silo.doctor.visit import Visit
from fedplat_silo.trainer.group import TrainOrder, WorkerGroup
from fedplat_silo.trainer.plan import TrainingPlan
from fedplat_silo.workplace import threads_per_worker


@dataclass(frozen=True)
class Rehearsal:
    """`step_s`: of the second batch, the first one loads libraries. `size_bytes`: of what goes to the server."""

    step_s: float
    evaluating_s: float
    size_bytes: int
    device: str
    num_workers: int

    def round_s(self, num_steps: int) -> float:
        """What a whole round takes."""
        return self.evaluating_s + num_steps * self.step_s


def rehearse(visit: Visit, spec: RunSpec, data: Path, noise_multiplier: float | None) -> Rehearsal:
    """Two rounds of one batch each. Raises TrainingFailed."""
    with tempfile.TemporaryDirectory(prefix="fedplat-doctor-") as folder:
        plan = one_batch(visit, spec, data, Path(folder) / "run")
        with WorkerGroup(plan, visit.log, lambda _phase, _share: None) as workers:
            ready = workers.start()
            weights = workers.initial_weights()
            for number in (1, 2):
                order = TrainOrder(round=number, evaluate=True, noise_multiplier=noise_multiplier)
                timings = workers.train(order, weights).timings
    item_bytes = 4 if spec.secure_aggregation.enabled else spec.transport.precision.item_bytes
    return Rehearsal(
        timings.training_s, timings.evaluating_s, ready.layout.size * item_bytes, ready.device, ready.num_workers
    )


def one_batch(visit: Visit, spec: RunSpec, data: Path, run_dir: Path) -> TrainingPlan:
    """The run's training, with rounds of one batch."""
    training = spec.training.model_copy(update={"epochs": None, "steps": 1, "local_checkpoint_steps": None})
    return TrainingPlan(
        spec=spec.model_copy(update={"training": training}),
        silo=visit.home.name,
        data=data,
        exclude=exclusion_file(visit.home),
        run_dir=run_dir,
        num_workers=visit.num_workers,
        gpus=visit.gpus,
        threads=threads_per_worker(visit.policy.max_threads, len(visit.gpus) or visit.num_workers),
    )
