"""From signed statements to what was charged, and which silos' losses compose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedplat.ledger import Deed, SignedStatement, Statement, from_wire
from fedplat.privacy import merged
from fedplat.report.federation.material import FederationMaterial, SiloFacts
from fedplat.report.figures import Facts
from fedplat.report.sums import Sum

_NO_BOUND = Sum((), is_bounded=False)
_NOTHING = Sum((), is_bounded=True)


@dataclass(frozen=True, slots=True)
class Charged:
    """At one silo. `alone`: of the run, the whole `lifetime` if not `alone_is_known`; None if no run was asked for."""

    facts: SiloFacts
    alone: Sum | None
    alone_is_known: bool
    lifetime: Sum

    @property
    def population(self) -> str:
        """Its random name; empty where the silo has signed nothing."""
        return self.facts.latest.told.population if self.facts.latest else ""


def charged(facts: SiloFacts, run: str | None) -> Charged:
    """What the silo has signed for; without a bound where it has signed nothing, or something had no noise."""
    if facts.latest is None:
        return Charged(facts, _NO_BOUND if run else None, True, _NO_BOUND)
    told = facts.latest.told
    releases = [_read(signed) for signed in facts.releases]
    lifetime = Sum(merged(from_wire(told.spent)), is_bounded=not facts.bare_runs and _all_noised(releases))
    if run is None:
        return Charged(facts, None, True, lifetime)
    everything = merged(event for release in releases for event in from_wire(release.events))
    if everything != lifetime.events:
        return Charged(facts, lifetime, False, lifetime)
    own = [release for release in releases if release.run == run]
    events = merged(event for release in own for event in from_wire(release.events))
    return Charged(facts, Sum(events, _all_noised(own) and run not in facts.bare_runs), True, lifetime)


def groups(charges: Sequence[Charged], overlaps: Iterable[Sequence[str]]) -> list[list[Charged]]:
    """Those together whose patients may be the same. The populations of one silo have no patient in common."""
    together = {one.facts.silo: {one.facts.silo} for one in charges}
    for overlap in overlaps:
        here = [silo for silo in overlap if silo in together]
        joined = set().union(*(together[silo] for silo in here))
        together |= dict.fromkeys(joined, joined)
    found: dict[tuple[str, ...], list[Charged]] = {}
    for one in charges:
        silos = sorted(together[one.facts.silo])
        key = tuple(silos) if len(silos) > 1 else (one.facts.silo, one.population)
        found.setdefault(key, []).append(one)
    return list(found.values())


def composed(sums: Iterable[Sum]) -> Sum:
    """Of patients who are in all of them."""
    known = list(sums)
    events: Facts = merged(event for one in known for event in one.events)
    return Sum(events, all(one.is_bounded for one in known))


def delta_of(material: FederationMaterial) -> float:
    """The run's, else the smallest that a silo has signed, at which every epsilon is the largest."""
    if material.run is not None and material.run.delta is not None:
        return material.run.delta
    return min((facts.latest.told.delta for facts in material.silos if facts.latest), default=1e-5)


def _read(signed: SignedStatement) -> Statement:
    return Statement.model_validate_json(signed.statement)


def _all_noised(releases: Sequence[Statement]) -> bool:
    return all(release.events for release in releases if release.deed is Deed.SPENT)
