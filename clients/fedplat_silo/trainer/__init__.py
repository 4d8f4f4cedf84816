"""Training inside the silo. What is imported here needs no torch: it drives the processes that do."""

from fedplat_silo.trainer.errors import Cancelled, TrainingFailed
from fedplat_silo.trainer.group import (
    EvaluateOrder,
    EvaluateResult,
    Ready,
    TrainOrder,
    TrainResult,
    WorkerGroup,
)
from fedplat_silo.trainer.plan import TrainingPlan

__all__ = [
    "Cancelled",
    "EvaluateOrder",
    "EvaluateResult",
    "Ready",
    "TrainOrder",
    "TrainResult",
    "TrainingFailed",
    "TrainingPlan",
    "WorkerGroup",
]
