"""The public names, pinned: a change here is a change for those who build on fedplat."""

from __future__ import annotations

import fedplat.spec
import fedplat.wire


def test_spec() -> None:
    assert fedplat.spec.__all__ == [
        "Categorical",
        "DataSection",
        "EvaluationSection",
        "ModelSection",
        "Numeric",
        "RoundsSection",
        "RunSpec",
        "SilosSection",
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


def test_wire() -> None:
    assert fedplat.wire.__all__ == ["Parcel", "from_record", "to_record"]
    assert all(hasattr(fedplat.wire, name) for name in fedplat.wire.__all__)
