"""Specs and tables for the tests of the silo's data, tasks and training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedplat.spec import RunSpec, parse_spec

FEATURES = """
  { column = "age", kind = "numeric", center = 50, scale = 10 },
  { column = "sex", kind = "categorical", categories = ["f", "m"] },
"""

SPEC = """
name = "test"
seed = 7
rounds = {{ count = 1 }}
data = {{ name = "clinic", {data} }}
model = {{ {model} }}
[task]
name = "tabular"
[task.options]
{options}
target = {{ {target} }}
features = [ {features} ]
[training]
{training}
"""


@pytest.fixture
def make_spec() -> Callable[..., RunSpec]:
    """A spec of the tabular task; each keyword replaces one part of its text."""

    def build(
        features: str = FEATURES,
        target: str = 'column = "ill", categories = ["no", "yes"]',
        options: str = "",
        training: str = "epochs = 1",
        model: str = "",
        data: str = "test_share = 0.0",
    ) -> RunSpec:
        parts = {"features": features, "target": target, "options": options, "training": training}
        return parse_spec(SPEC.format(**parts, model=model, data=data))

    return build


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a CSV file with exactly this text."""

    def write(text: str, name: str = "clinic.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return write
