"""Plots in a PDF, drawn as vectors."""

from __future__ import annotations

import unicodedata
from typing import assert_never

from reportlab.lib.colors import HexColor, white
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable

from fedplat.report.drawing import INKS, TEXT_COLOUR, Box, Figure, Path, Segment, Shape, Words

_NAME, _LEGEND, _GAP = 18, 18, 8
_SMALLEST, _FONT = 0.72, 10.5
_TALLEST = 680  # a page of A4 holds that between its margins


def plain(text: str) -> str:
    """The standard fonts have the letters of Western Europe; of others the base letter is left, or a question mark."""
    return "".join(map(_letter, text))


class Plot(Flowable):
    """A figure with its name above and its legend below, as wide as the page, but for a little."""

    def __init__(self, figure: Figure) -> None:
        super().__init__()
        self._figure = figure
        self._scale = 1.0

    def wrap(self, aW: float, aH: float) -> tuple[float, float]:  # noqa: N803 (reportlab's names)
        """How much room it takes."""
        below = _LEGEND if self._figure.legend else 0
        room = _TALLEST - _NAME - below - _GAP
        self._scale = min(aW / self._figure.width, room / self._figure.height, _SMALLEST)
        return aW, self._figure.height * self._scale + _NAME + below + _GAP

    def draw(self) -> None:
        """On the page, at the place that it was given."""
        canvas: Canvas = self.canv
        canvas.setFillColor(HexColor("#1c2430"))
        below = _LEGEND if self._figure.legend else 0
        height = self._figure.height * self._scale
        canvas.setFont("Helvetica-Bold", 9.5)
        canvas.drawString(0, height + below + 6, plain(self._figure.name))
        canvas.saveState()
        canvas.translate(0, below)
        canvas.scale(self._scale, self._scale)
        for shape in self._figure.shapes:
            self._shape(canvas, shape)
        canvas.restoreState()
        self._legend(canvas)

    def _shape(self, canvas: Canvas, shape: Shape) -> None:
        top = self._figure.height
        match shape:
            case Segment(x1, y1, x2, y2, style):
                _stroke(canvas, style)
                canvas.line(x1, top - y1, x2, top - y2)
            case Box(x, y, width, height, style):
                canvas.setFillColor(HexColor(INKS[style].colour))
                canvas.rect(x, top - y - height, width, height, stroke=0, fill=1)
            case Path():
                self._path(canvas, shape)
            case Words():
                self._words(canvas, shape)
            case _:
                assert_never(shape)

    def _path(self, canvas: Canvas, path: Path) -> None:
        _stroke(canvas, path.style)
        top = self._figure.height
        drawn = canvas.beginPath()
        for place, (x, y) in enumerate(path.points):
            (drawn.lineTo if place else drawn.moveTo)(x, top - y)
        canvas.drawPath(drawn)
        canvas.setFillColor(HexColor(INKS[path.style].colour))
        for x, y in path.points if path.dots else ():
            canvas.circle(x, top - y, 2.6, stroke=0, fill=1)

    def _words(self, canvas: Canvas, words: Words) -> None:
        canvas.setFont("Helvetica-Bold" if words.on_bar else "Helvetica", _FONT)
        canvas.setFillColor(white if words.on_bar else HexColor(TEXT_COLOUR))
        canvas.saveState()
        canvas.translate(words.x, self._figure.height - words.y)
        if words.upwards:
            canvas.rotate(90)
        write = {"start": canvas.drawString, "middle": canvas.drawCentredString, "end": canvas.drawRightString}
        write[words.anchor](0, 0, plain(words.text))
        canvas.restoreState()

    def _legend(self, canvas: Canvas) -> None:
        x = 0.0
        canvas.setFont("Helvetica", 8)
        for label, style in self._figure.legend:
            _stroke(canvas, style)
            canvas.line(x, 7, x + 20, 7)
            canvas.setDash()
            canvas.setFillColor(HexColor(TEXT_COLOUR))
            canvas.drawString(x + 25, 4.5, plain(label))
            x += 25 + stringWidth(plain(label), "Helvetica", 8) + 18


def _stroke(canvas: Canvas, style: str) -> None:
    ink = INKS[style]
    canvas.setStrokeColor(HexColor(ink.colour))
    canvas.setLineWidth(ink.width)
    canvas.setDash(*((list(ink.dashes),) if ink.dashes else ()))


def _letter(character: str) -> str:
    try:
        character.encode("cp1252")
    except UnicodeEncodeError:
        return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
    return character
