"""The run spec: what is to be trained, on which data, by which rules. Everything else follows from it."""

from fedplat.spec.load import load_spec, parse_spec
from fedplat.spec.model import (
    CheckpointSection,
    DataSection,
    EvaluationSection,
    ModelSection,
    RoundsSection,
    RunSpec,
    SilosSection,
    StopSection,
    StrategyName,
    StrategySection,
    TaskSection,
    TrainingSection,
)
from fedplat.spec.tabular import Categorical, Numeric, TabularOptions, Target
from fedplat.spec.weighting import Weighting

__all__ = [
    "Categorical",
    "CheckpointSection",
    "DataSection",
    "EvaluationSection",
    "ModelSection",
    "Numeric",
    "RoundsSection",
    "RunSpec",
    "SilosSection",
    "StopSection",
    "StrategyName",
    "StrategySection",
    "TabularOptions",
    "Target",
    "TaskSection",
    "TrainingSection",
    "Weighting",
    "load_spec",
    "parse_spec",
]
