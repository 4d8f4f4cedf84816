"""Run specs of the tests, beside `federation.add_constant`."""

from __future__ import annotations

from collections.abc import Sequence

_TABLE = """
name = "{data}"
[task]
name = "tabular"
{options}
[task.options.target]
column = "ill"
categories = ["no", "yes"]
[[task.options.features]]
column = "age"
kind = "numeric"
[[task.options.features]]
column = "sex"
kind = "categorical"
categories = ["f", "m"]
[data]
name = "{data}"
test_share = 0
[rounds]
count = {rounds}
[silos]
names = ["s"]
[training]
epochs = 1
"""

_PROBE = """
name = "probe"
[task]
name = "probe"
[task.options]
fail = "{fail}"
[data]
name = "{data}"
[model]
shared = ["shared"]
frozen = ["frozen"]
[rounds]
count = {rounds}
[silos]
names = {silos}
[training]
steps = 1
"""


def table(data: str, *, rounds: int = 1, patient: str = "") -> str:
    """A logistic model of age and sex, at the silo `s`."""
    options = f'[task.options]\npatient = "{patient}"' if patient else ""
    return _TABLE.format(data=data, rounds=rounds, options=options)


def probe(silos: Sequence[str] = ("s",), *, data: str = "none", rounds: int = 1, fail: str = "") -> str:
    """The probe task (`probe_task.py`)."""
    return _PROBE.format(silos=list(silos), data=data, rounds=rounds, fail=fail)
