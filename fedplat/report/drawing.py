"""Plots as shapes, which HTML (as SVG) and PDF then draw each in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Points = Sequence[tuple[float, float]]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Ink:
    """How a style is drawn: colour, width of lines, and the dashes of broken ones."""

    colour: str
    width: float = 2.2
    dashes: tuple[int, ...] = ()


INKS: Mapping[str, Ink] = {
    "grid": Ink("#e4e8ed", 1),
    "axis": Ink("#3a4452", 1),
    "main": Ink("#1f5fa8"),
    "other": Ink("#4d8f6b"),
    "third": Ink("#b8741a"),
    "fourth": Ink("#7b4fa3"),
    "fifth": Ink("#aeb7c4"),
    "sixth": Ink("#2a9db0"),
    "bare": Ink("#a3250f"),
    "limit": Ink("#a3250f", 2, (7, 4)),
    "coin": Ink("#7a8494", 1.6, (2, 4)),
}
TEXT_COLOUR = "#3a4452"


@dataclass(frozen=True, slots=True)
class Segment:
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    style: str


@dataclass(frozen=True, slots=True)
class Path:
    """A line through points; `dots`: each of them is marked, for where they are few."""

    points: Points
    style: str
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    style: str


@dataclass(frozen=True, slots=True)
class Words:
    """Text on a line at `y`. `upwards`: turned to the left by a right angle; `on_bar`: white, in bold."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    upwards: bool = False
    on_bar: bool = False


Shape = Segment | Path | Box | Words


@dataclass(frozen=True, slots=True)
class Figure:
    """A named plot. `shapes`: x to the right, y down, from (0, 0) to (`width`, `height`); `legend`: (label, style)."""

    name: str
    width: float
    height: float
    shapes: tuple[Shape, ...]
    legend: tuple[tuple[str, str], ...] = ()
