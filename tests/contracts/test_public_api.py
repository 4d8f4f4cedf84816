"""The public names, pinned: a change here is a change for those who build on fedplat."""

from __future__ import annotations

import fedplat.spec


def test_spec() -> None:
    assert fedplat.spec.__all__ == [
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
    assert all(hasattr(fedplat.spec, name) for name in fedplat.spec.__all__)
