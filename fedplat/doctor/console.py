"""What `fedplat doctor` prints, for people and for programs."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import entry_points

import click

from fedplat.doctor.checks import Asked, Level, Subject
from fedplat.doctor.examining import Line, examine
from fedplat.errors import NotFoundError

GROUP = "fedplat.doctor"
_WIDTHS = 8, 13


def find_subjects(asked: Asked) -> list[Subject]:
    """What there is to examine, the server first. Raises NotFoundError if there is nothing."""
    sides = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    found = [subject for side in sides for subject in side.load()(asked)]
    if not found:
        raise NotFoundError(
            f"there is neither a server nor a silo in {asked.root}",
            hint="Name its home with --home DIR or FEDPLAT_HOME; `fedplat --help` says how to begin.",
        )
    return found


def run_doctor(asked: Asked, *, as_json: bool) -> int:
    """Examines and prints; returns the exit status: 1 if a check has failed."""
    logging.getLogger().addHandler(logging.NullHandler())  # what libraries warn of is not part of the findings
    levels: Counter[Level] = Counter()
    shown: list[dict[str, object]] = []
    for subject in find_subjects(asked):
        lines = _counted(examine(subject), levels)
        if as_json:
            shown.append({"subject": subject.title, "checks": [asdict(line) for line in lines]})
            continue
        click.echo(click.style(subject.title, bold=True))
        for line in lines:
            _show(line)
    is_well = not levels[Level.FAILED]
    if as_json:
        click.echo(json.dumps({"ok": is_well, "subjects": shown}, indent=2, ensure_ascii=False))
    else:
        click.echo(", ".join(f"{levels[level]} {level}" for level in Level if levels[level]))
    return 0 if is_well else 1


def _counted(lines: Iterable[Line], levels: Counter[Level]) -> Iterator[Line]:
    for line in lines:
        levels[line.level] += 1
        yield line


_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "red", Level.SKIPPED: None}


def _show(line: Line) -> None:
    indent = " " * (sum(_WIDTHS) + 6)
    level = click.style(f"{line.level:<{_WIDTHS[0]}}", fg=_COLOURS[line.level])
    found = line.found.replace("\n", f"\n{indent}")
    click.echo(f"  {level}  {line.check:<{_WIDTHS[1]}}  {found}")
    if line.todo:
        click.echo(f"{indent}{line.todo}")
