"""Plots of lines and of bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedplat.report.drawing import Box, Figure, Path, Points, Segment, Shape, Words
from fedplat.report.wording import say

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 18, 46
_NUM_TICKS = 5
_BAR, _NAMES = 28, 92
_MOST_DOTS = 40
_LETTER = 7
_RULES = ("limit", "coin")


@dataclass(frozen=True, slots=True)
class Line:
    """`style`: one of the inks."""

    label: str
    points: Points
    style: str


@dataclass(frozen=True, slots=True)
class Axis:
    """From `start` to `end`. `whole`: it counts, so that there is nothing between two numbers."""

    label: str
    end: float
    start: float = 0
    whole: bool = False

    def ticks(self) -> list[float]:
        """Round numbers, about five."""
        raw = (self.end - self.start) / _NUM_TICKS
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * by for by in (1, 2, 2.5, 5, 10) if size * by >= raw * 0.999)
        step = max(1.0, math.ceil(step)) if self.whole else step
        first, last = math.ceil(self.start / step - 1e-3), math.floor(self.end / step + 1e-3)
        return [step * place for place in range(first, last + 1)]

    def place(self, value: float, begin: float, length: float) -> float:
        """Where a value is on an axis that begins at `begin`."""
        return begin + (value - self.start) / (self.end - self.start) * length


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of several parts (value, style); no parts: it has no bound and goes to the edge. `shown`: at its end."""

    name: str
    parts: tuple[tuple[float, str], ...]
    shown: str

    @property
    def total(self) -> float:
        """Where it ends."""
        return math.fsum(value for value, _ in self.parts)


def bar(name: str, value: float | None, style: str) -> Bar:
    """A bar of one part."""
    return Bar(name, () if value is None else ((value, style),), say(value))


def line_plot(name: str, x: Axis, y: Axis, lines: Sequence[Line]) -> Figure:
    """Lines over common axes, each named in a legend."""
    shapes = [*_frame(x, y)]
    for line in lines:
        points = [(_x(a, x), _y(b, y)) for a, b in line.points]
        shapes.append(Path(points, line.style, dots=x.whole and line.style not in _RULES and len(points) <= _MOST_DOTS))
    return Figure(name, _WIDTH, _HEIGHT, tuple(shapes), tuple((line.label, line.style) for line in lines))


def bar_plot(
    name: str, label: str, bars: Sequence[Bar], limit: float | None = None, legend: Sequence[tuple[str, str]] = ()
) -> Figure:
    """Horizontal bars, and a limit that they should not pass."""
    known = [one.total for one in bars if one.parts] + ([limit] if limit else [])
    x = Axis(label, max(known, default=1.0) * 1.15 or 1.0)
    height = _TOP + _BOTTOM + _BAR * len(bars)
    shapes = [*_x_axis(x, height, _LEFT + _NAMES)]
    at = _x_bar(limit, x) if limit else 0.0
    if limit:
        shapes.append(Segment(at, _TOP - 6, at, height - _BOTTOM, "limit"))
        legend = (*legend, (f"budget {limit:g}", "limit"))
    shapes += [shape for place, one in enumerate(bars) for shape in _bar(one, x, _TOP + _BAR * place, at)]
    return Figure(name, _WIDTH, height, tuple(shapes), tuple(legend))


def _bar(one: Bar, x: Axis, top: int, limit: float) -> Iterator[Shape]:
    """`limit`: where the line of the limit is, which no number may cover."""
    start = reached = float(_LEFT + _NAMES)
    for value, style in one.parts:
        width = value / x.end * (_WIDTH - _LEFT - _NAMES - _RIGHT)
        yield Box(reached, top + 4, width, 18, style)
        reached += width
    if not one.parts:
        reached = _x_bar(x.end, x)
        yield Box(start, top + 4, reached - start, 18, "bare")
    yield Words(start - 8, top + 17, _short(one.name), "end")
    length = _LETTER * len(one.shown) + 6
    after = max(reached, limit) if reached < limit < reached + length + 6 else reached
    inside = not one.parts or after + length + 6 > _WIDTH
    at = reached - 6 if inside else after + 6
    yield Words(at, top + 17, one.shown, "end" if inside else "start", on_bar=inside)


def _frame(x: Axis, y: Axis) -> Iterator[Shape]:
    yield from _x_axis(x, _HEIGHT, _LEFT)
    for tick in y.ticks():
        at = _y(tick, y)
        yield Segment(_LEFT, at, _WIDTH - _RIGHT, at, "grid")
        yield Words(_LEFT - 7, at + 4, f"{tick:g}", "end")
    yield Words(15, (_TOP + _HEIGHT - _BOTTOM) / 2, y.label, "middle", upwards=True)
    yield Segment(_LEFT, _TOP, _LEFT, _HEIGHT - _BOTTOM, "axis")


def _x_axis(x: Axis, height: int, left: int) -> Iterator[Shape]:
    bottom, length = height - _BOTTOM, _WIDTH - left - _RIGHT
    for tick in x.ticks():
        at = x.place(tick, left, length)
        yield Segment(at, _TOP, at, bottom, "grid")
        yield Words(at, bottom + 17, f"{tick:g}", "middle")
    yield Segment(left, bottom, _WIDTH - _RIGHT, bottom, "axis")
    yield Words((left + _WIDTH - _RIGHT) / 2, bottom + 38, x.label, "middle")


def _x(value: float, axis: Axis) -> float:
    return axis.place(value, _LEFT, _WIDTH - _LEFT - _RIGHT)


def _x_bar(value: float, axis: Axis) -> float:
    return axis.place(value, _LEFT + _NAMES, _WIDTH - _LEFT - _NAMES - _RIGHT)


def _y(value: float, axis: Axis) -> float:
    return axis.place(value, _HEIGHT - _BOTTOM, -(_HEIGHT - _TOP - _BOTTOM))


def _short(text: str) -> str:
    """Names that begin alike often end differently."""
    return text if len(text) <= 19 else f"{text[:9]}…{text[-9:]}"
