"""Plots as inline SVG: no scripts, no fonts, nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fedplat.report.wording import say

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 18, 46
_NUM_TICKS = 5
_BAR, _NAMES = 28, 92
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """`style`: a class of the style sheet."""

    label: str
    points: Points
    style: str


@dataclass(frozen=True, slots=True)
class Axis:
    """From 0 to `end`."""

    label: str
    end: float

    def ticks(self) -> list[float]:
        """Round numbers, about five."""
        raw = self.end / _NUM_TICKS
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * by for by in (1, 2, 2.5, 5, 10) if size * by >= raw * 0.999)
        return [step * place for place in range(math.floor(self.end / step * 1.001) + 1)]


def line_plot(name: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Lines over common axes, each named in a legend."""
    body = [_frame(x, y)]
    for line in lines:
        path = " ".join(f"{_x(a, x):.1f},{_y(b, y):.1f}" for a, b in line.points)
        body.append(f'<polyline class="{line.style}" points="{path}"/>')
    return _figure(name, "".join(body), _HEIGHT, [(line.label, line.style) for line in lines])


def bar_plot(name: str, label: str, bars: Sequence[tuple[str, float | None, str]], limit: float | None) -> str:
    """Horizontal bars (name, value, style); a value of None has no bound and goes to the edge."""
    known = [value for _, value, _ in bars if value is not None] + ([limit] if limit else [])
    x = Axis(label, max(known, default=1.0) * 1.15 or 1.0)
    height = _TOP + _BOTTOM + _BAR * len(bars)
    body, legend = [_x_axis(x, height)], []
    if limit:
        at, legend = _x_bar(limit, x), [("budget", "limit")]
        body.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{height - _BOTTOM}"/>')
    body += [_bar(*bar, x, _TOP + _BAR * place) for place, bar in enumerate(bars)]
    return _figure(name, "".join(body), height, legend)


def _bar(text: str, value: float | None, style: str, x: Axis, top: int) -> str:
    start, end = _LEFT + _NAMES, _x_bar(x.end if value is None else value, x)
    shown, inside = say(value), value is None or end > _WIDTH - 70
    place = f'class="inside" x="{end - 6:.1f}"' if inside else f'class="outside" x="{end + 6:.1f}"'
    return (
        f'<rect class="{style}" x="{start}" y="{top + 4}" width="{end - start:.1f}" height="18"/>'
        f'<text class="end" x="{start - 8}" y="{top + 17}">{escape(_short(text))}</text>'
        f'<text {place} y="{top + 17}">{shown}</text>'
    )


def _figure(name: str, body: str, height: int, legend: Sequence[tuple[str, str]]) -> str:
    keys = "".join(
        f'<span class="key"><svg width="26" height="10" aria-hidden="true"><line class="{style}" x1="1" x2="25" y1="5"'
        f' y2="5"/></svg> {escape(label)}</span>'
        for label, style in legend
    )
    return (
        f'<figure><figcaption>{escape(name)}</figcaption><svg viewBox="0 0 {_WIDTH} {height}" role="img"'
        f' aria-label="{escape(name)}">{body}</svg><div class="legend">{keys}</div></figure>'
    )


def _frame(x: Axis, y: Axis) -> str:
    parts = [_x_axis(x, _HEIGHT, vertical=True)]
    for tick in y.ticks():
        at = _y(tick, y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 7}" y="{at + 4:.1f}">{tick:g}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="label" transform="translate(15 {middle:.0f}) rotate(-90)">{escape(y.label)}</text>'
        f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
    )
    return "".join(parts)


def _x_axis(x: Axis, height: int, *, vertical: bool = False) -> str:
    place, left, bottom = (_x, _LEFT, height - _BOTTOM) if vertical else (_x_bar, _LEFT + _NAMES, height - _BOTTOM)
    parts = [f'<line class="axis" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for tick in x.ticks():
        at = place(tick, x)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 17}">{tick:g}</text>')
    parts.append(
        f'<text class="label" x="{(left + _WIDTH - _RIGHT) / 2:.0f}" y="{bottom + 38}">{escape(x.label)}</text>'
    )
    return "".join(parts)


def _x(value: float, axis: Axis) -> float:
    return _LEFT + value / axis.end * (_WIDTH - _LEFT - _RIGHT)


def _x_bar(value: float, axis: Axis) -> float:
    return _LEFT + _NAMES + value / axis.end * (_WIDTH - _LEFT - _NAMES - _RIGHT)


def _y(value: float, axis: Axis) -> float:
    return _HEIGHT - _BOTTOM - value / axis.end * (_HEIGHT - _TOP - _BOTTOM)


def _short(text: str) -> str:
    return text if len(text) <= 19 else f"{text[:18]}…"
