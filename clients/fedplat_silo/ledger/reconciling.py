"""What entries that were lost have to be charged, from the statements that the silo had signed for the server.

A statement says all that a population was charged by then, and all that was still reserved. What the book had in
common with it is known up to the last head that the server countersigned; only that is taken off. What lies between is
charged twice if it was restored as well: over the truth, never under it. A budget that was lowered holds again if a
statement came after that; where none did, nobody can know.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedplat.ledger import Statement, from_wire, to_wire
from fedplat_silo.ledger.entries import Charge, KeptBudget
from fedplat_silo.ledger.state import State, Steps, events_of, steps_of


def lacks_copies(state: State, copies: Sequence[Statement]) -> bool:
    """Whether there are no statements, or none as late as the head that the server told of."""
    last = max((copy.seq for copy in copies), default=0)
    return not copies or any(told.source == "server" and told.told_seq > last for told in state.behind)


def next_era(state: State, copies: Sequence[Statement]) -> int:
    """Later than this book and than all that was lost."""
    return 1 + max([state.era, *(copy.era for copy in copies)])


def charges(state: State, copies: Sequence[Statement]) -> tuple[Charge, ...]:
    """For each population of which there is a statement what its last one has above the common part; for the others
    what their open runs have reserved."""
    last: dict[str, Statement] = {}
    for copy in sorted(copies, key=lambda copy: (copy.era, copy.seq)):
        last[copy.population] = copy
    found = [
        Charge(
            population=copy.population,
            dataset=copy.dataset,
            events=to_wire(events_of(_missing(state, copy))),
            budget=_budget(copy),
        )
        for copy in last.values()
    ]
    stated = {_population(state, copy) for copy in last.values()}
    for page in state.runs.values():
        population = state.root(page.reserved.population)
        if population not in stated:
            rest = to_wire(events_of(page.rest))
            found.append(Charge(population=population, dataset=page.reserved.dataset, events=rest))
    return tuple(charge for charge in found if charge.events or charge.budget)


def _missing(state: State, copy: Statement) -> Steps:
    common = state.spent_when_countersigned.get(copy.population, Steps())
    return steps_of(from_wire(copy.spent)) + steps_of(from_wire(copy.reserved)) - common


def _population(state: State, copy: Statement) -> str:
    """The population that a statement is about, as the book knows it."""
    known = state.population(copy.dataset)
    return state.root(copy.population) if known is None else known


def _budget(copy: Statement) -> KeptBudget | None:
    if copy.budget is None:
        return None
    return KeptBudget(epsilon=copy.budget, delta=copy.delta, unit=copy.unit)
