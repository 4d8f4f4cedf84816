"""Plots as inline SVG: no scripts, no fonts, nothing from elsewhere."""

from __future__ import annotations

from html import escape

from fedplat.report.drawing import INKS, TEXT_COLOUR, Box, Figure, Path, Segment, Shape, Words

_RULES = [
    f"svg .{name} {{ stroke: {ink.colour}; fill: none; stroke-width: {ink.width:g};"
    + (f" stroke-dasharray: {' '.join(map(str, ink.dashes))};" if ink.dashes else "")
    + " }"
    for name, ink in INKS.items()
] + [f"svg .{name}-fill {{ fill: {ink.colour}; }}" for name, ink in INKS.items()]
STYLE = "\n".join(
    [
        f"svg text {{ font-size: 12px; fill: {TEXT_COLOUR}; }}",
        "svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }",
        "svg .on-bar { fill: #fff; font-weight: 600; }",
        "svg .beside { paint-order: stroke; stroke: #fff; stroke-width: 4px; }",
        *_RULES,
    ]
)


def as_svg(figure: Figure) -> str:
    """The whole <figure>, with name and legend. Its classes are in `STYLE`."""
    keys = "".join(
        f'<span class="key"><svg width="26" height="10" aria-hidden="true"><line class="{style}" x1="1" x2="25" y1="5"'
        f' y2="5"/></svg> {escape(label)}</span>'
        for label, style in figure.legend
    )
    name, body = escape(figure.name), "".join(map(_shape, figure.shapes))
    return (
        f'<figure><figcaption>{name}</figcaption><svg viewBox="0 0 {figure.width:g} {figure.height:g}" role="img"'
        f' aria-label="{name}">{body}</svg><div class="legend">{keys}</div></figure>\n'
    )


def _shape(shape: Shape) -> str:
    match shape:
        case Segment(x1, y1, x2, y2, style):
            return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        case Box(x, y, width, height, style):
            return f'<rect class="{style}-fill" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
        case Path(points, style, dots):
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            marks = [f'<circle class="{style}-fill" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points]
            return f'<polyline class="{style}" points="{line}"/>' + "".join(marks if dots else [])
        case Words():
            return _words(shape)


def _words(words: Words) -> str:
    x, y = f"{words.x:.1f}", f"{words.y:.1f}"
    place = f'transform="translate({x} {y}) rotate(-90)"' if words.upwards else f'x="{x}" y="{y}"'
    beside = "on-bar" if words.on_bar else "beside" if words.anchor == "start" else ""
    return f'<text class="{words.anchor} {beside}" {place}>{escape(words.text)}</text>'
