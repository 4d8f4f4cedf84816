"""Where the time of a run went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedplat.report.document import Chapter, Table
from fedplat.report.drawing import Figure
from fedplat.report.plots import Axis, Bar, Line, bar_plot, line_plot

View = Mapping[str, Any]
_PHASES = {"training": "main", "evaluating": "other", "communicating": "third", "waiting": "fifth"}


def time_chapter(view: View) -> Chapter:
    """Seconds a round, of the whole and of each silo, and what else tells how fast it was."""
    by_silo: dict[str, list[View]] = {}
    for part in view["silo_rounds"]:
        if part["seconds_training"] is not None:
            by_silo.setdefault(part["silo_name"], []).append(part)
    text = (
        "Mean seconds over the rounds that a silo has trained in, of its own time. A whole round takes as long as the"
        " slowest silo, and as opening the sum and the step take at the server."
    )
    tables = [_silos(by_silo)] if by_silo else []
    if view["secure_steps"]:
        tables.append(_secure(view["secure_steps"]))
    return Chapter(
        "Where the time went",
        text=text if by_silo else "No silo has finished a round.",
        figures=tuple(_figures(view, by_silo)),
        tables=tuple(tables),
    )


def _figures(view: View, by_silo: Mapping[str, Sequence[View]]) -> list[Figure]:
    found = []
    if by_silo:
        bars = [_bar(silo, parts) for silo, parts in sorted(by_silo.items())]
        name, label = "Where a round's time went, silo by silo", "seconds a round"
        found.append(bar_plot(name, label, bars, legend=list(_PHASES.items())))
    points = [(one["number"], one["seconds"]) for one in view["rounds"] if one["seconds"] is not None]
    if points:
        most = max(seconds for _, seconds in points) * 1.1 or 1.0
        x = Axis("round", max(2, points[-1][0]), start=1 if len(points) > 1 else 0, whole=True)
        line = Line("whole round", points, "main")
        found.append(line_plot("Seconds of each round", x, Axis("seconds", most), [line]))
    return found


def _bar(silo: str, parts: Sequence[View]) -> Bar:
    spent = [(_mean(parts, f"seconds_{phase}"), style) for phase, style in _PHASES.items()]
    known = tuple((seconds or 0.0, style) for seconds, style in spent)
    return Bar(silo, known, f"{sum(seconds for seconds, _ in known):.2f}")


def _silos(by_silo: Mapping[str, Sequence[View]]) -> Table:
    head = ("Silo", "Rounds", *(phase.capitalize() for phase in _PHASES), "Records/s", "Busy", "MB", "Restarts")
    rows = []
    for silo, parts in sorted(by_silo.items()):
        busy = _mean(parts, "busy_share")
        moved = sum((part["bytes_down"] or 0) + (part["bytes_up"] or 0) for part in parts) / 1e6
        rows.append(
            (
                silo,
                str(len(parts)),
                *(_shown(_mean(parts, f"seconds_{phase}")) for phase in _PHASES),
                _shown(_mean(parts, "samples_per_second"), digits=0),
                "" if busy is None else f"{busy:.0%}",
                f"{moved:.1f}",
                str(sum(part["restarts"] for part in parts)),
            )
        )
    return Table(head, tuple(rows))


def _secure(steps: Sequence[View]) -> Table:
    rows = tuple(
        (f"Mean seconds of {key}", _shown(_mean(steps, f"seconds_{key}")))
        for key in ("masking", "agreeing", "unmasking")
    )
    return Table((), rows)


def _mean(parts: Sequence[View], name: str) -> float | None:
    known = [part[name] for part in parts if part[name] is not None]
    return fmean(known) if known else None


def _shown(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
