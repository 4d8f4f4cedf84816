"""The curves of a run: loss, and each metric, over its rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedplat.report.drawing import Figure
from fedplat.report.plots import Axis, Line, line_plot

View = Mapping[str, Any]
_SPLITS = {"test": "main", "train": "other"}
_NAMES = {"test": "test", "train": "training"}
_STYLES = ("main", "other", "third", "fourth", "bare", "sixth")


def numbers(evaluation: View) -> dict[str, float]:
    """Loss first, then each metric that is one number."""
    found = {"loss": evaluation["loss"], **evaluation["metrics"]}
    known = {k: v for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: float(value) for name, value in known.items() if not name.endswith("_bound")}


def curves(view: View) -> Iterator[Figure]:
    """One plot of the loss and of each metric that has a unit; those that are shares together, split by split."""
    names = dict.fromkeys(name for one in view["evaluations"] for name in numbers(one))
    lines = {(name, split): _line(view, name, split) for name in names for split in _SPLITS}
    shares = [name for name in names if name != "loss" and all(_is_share(lines[name, split]) for split in _SPLITS)]
    last = max([1, *(one["round_number"] for one in view["evaluations"])])
    for name in (name for name in names if name not in shares):
        shown = [Line(f"{_NAMES[split]} records", lines[name, split], style) for split, style in _SPLITS.items()]
        yield _plot(name.capitalize(), name, last, [line for line in shown if line.points])
    for split in _SPLITS:
        known = [name for name in shares if lines[name, split]]
        for start in range(0, len(known), len(_STYLES)):
            chosen = zip(known[start : start + len(_STYLES)], _STYLES, strict=False)
            shown = [Line(name, lines[name, split], style) for name, style in chosen]
            yield _plot(f"Figures on the {_NAMES[split]} records", "", last, shown)


def _line(view: View, name: str, split: str) -> list[tuple[float, float]]:
    found = [(one["round_number"], numbers(one)) for one in view["evaluations"] if one["split"] == split]
    return [(number, figures[name]) for number, figures in found if name in figures]


def _is_share(points: Sequence[tuple[float, float]]) -> bool:
    return all(0 <= value <= 1 for _, value in points)


def _plot(title: str, label: str, last: int, lines: Sequence[Line]) -> Figure:
    """From 0, or from below where there are negative values; shares up to 1; never without a height."""
    values = [value for line in lines for _, value in line.points]
    low, high = min(0.0, *values), max(0.0, *values)
    top = 1.0 if not label or low == high == 0 else high * 1.08
    return line_plot(title, Axis("round", last, whole=True), Axis(label, top, start=low * 1.08), lines)
