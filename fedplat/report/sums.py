"""What a population was charged, and may be: events composed, and whether something besides has no bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedplat.ledger import Event, from_wire, to_wire
from fedplat.privacy import merged
from fedplat.report.figures import Facts
from fedplat.report.material import Limit, Material, RunFacts, RunState


@dataclass(frozen=True, slots=True)
class Sum:
    """Releases taken together. `is_bounded`: False if one of them had no noise, so that no epsilon bounds them."""

    events: Facts
    is_bounded: bool


def charged(material: Material, which: Callable[[str], bool] = lambda _: True, *, lost: bool = True) -> Sum:
    """What was released, of the runs that `which` takes."""
    releases = [release for release in material.releases if which(release.run)]
    bare = {run.run for run in material.runs if not run.has_privacy}
    events = [event for release in releases for event in from_wire(release.events)]
    is_bounded = not any(release.run in bare or not release.events for release in releases)
    return Sum(merged([*events, *(from_wire(material.lost) if lost else ())]), is_bounded)


def committed(material: Material, which: Callable[[str], bool] = lambda _: True) -> Sum:
    """What was released, and what runs that go on or are planned may still release."""
    so_far = charged(material, which)
    going_on = [run for run in material.runs if which(run.run) and run.state is not RunState.CLOSED]
    rests = [event for run in going_on for event in from_wire(run.rest)]
    return Sum(merged([*so_far.events, *rests]), so_far.is_bounded and all(run.has_privacy for run in going_on))


def alone(material: Material, run: RunFacts) -> Sum:
    """What one run released, or, planned, will."""
    if run.state is RunState.PLANNED:
        return Sum(merged(from_wire(run.rest)), run.has_privacy)
    return charged(material, lambda name: name == run.run, lost=False)


def before(material: Material) -> Sum:
    """All but the run that the report is about; for a plan, with what open runs may still spend."""
    if material.subject is None:
        return Sum((), True)
    take = committed if material.is_plan else charged
    return take(material, lambda name: name != material.subject)


def after(material: Material) -> Sum:
    """All, with the run that the report is about."""
    return committed(material) if material.is_plan else charged(material)


def tightest(limits: tuple[Limit, ...]) -> Limit | None:
    """The budget that is shown where several have to be kept."""
    return min(limits, key=lambda limit: (limit.epsilon, limit.delta), default=None)


def written(total: Sum) -> tuple[Event, ...]:
    """The events as they are written down."""
    return to_wire(total.events)
