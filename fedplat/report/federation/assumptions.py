"""What the federation's figures rest on, and whether it holds as far as the server can tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fedplat.privacy import epsilon
from fedplat.report.assumptions import DECLARED, FAR_BELOW, agreement, judge
from fedplat.report.federation.charges import Charged
from fedplat.report.federation.material import FederationMaterial
from fedplat.report.federation.model import FederationLoss
from fedplat.report.model import Assumption, CheckedEpsilon, Status

_SLACK = 1e-6


def assumptions(
    material: FederationMaterial, charges: Sequence[Charged], loss: FederationLoss, checks: Sequence[CheckedEpsilon]
) -> tuple[Assumption, ...]:
    """Those that can be checked first."""
    declared = (
        Assumption(name=name, status=Status.DECLARED, statement=text)
        for name, text in DECLARED
        if name != "distinct-patients"
    )
    return (*_signed(charges), *_figures(charges, checks), *_run(material, charges), *_patients(material), *declared)


def _signed(charges: Sequence[Charged]) -> Iterator[Assumption]:
    silent = [one.facts.silo for one in charges if one.facts.latest is None]
    yield judge("everybody-signed", not silent, "Every silo has signed what it charged.", _not_so(silent))
    former = [one.facts.silo for one in charges if one.facts.latest and not one.facts.latest.is_by_key]
    yield _seen("signatures", "Each statement bears the signature of the silo's enrolled key.", former, "earlier key")
    fresh = [one.facts.silo for one in charges if one.facts.latest and one.facts.latest.countersigned is None]
    yield _seen("countersigned", "Each ledger was countersigned: an old copy would be found out.", fresh, "not yet")
    partly = [one.facts.silo for one in charges if not one.alone_is_known]
    statement = "What the run alone was charged is known to the last release; else the silo's whole life stands for it."
    yield _seen("run-alone-known", statement, partly, "the whole life stands for it")


def _figures(charges: Sequence[Charged], checks: Sequence[CheckedEpsilon]) -> Iterator[Assumption]:
    bare = sorted({run for one in charges for run in one.facts.bare_runs})
    yield judge("all-private", not bare, "Every run on these data has differential privacy.", _not_so(bare))
    differ = [one.facts.silo for one in charges if not _is_as_signed(one)]
    yield judge(
        "figures-as-signed", not differ, "Computed anew, each silo's epsilon is what it signed.", _not_so(differ)
    )
    yield agreement(checks)
    units = {one.facts.latest.told.unit for one in charges if one.facts.latest}
    yield judge("one-unit", len(units) < 2, "Every silo protects the same: patients, or records.")
    over = [one.facts.silo for one in charges if _is_over(one)]
    yield judge(
        "within-budget", not over, "Where a silo has a budget, it keeps it with all that may come.", _not_so(over)
    )


def _run(material: FederationMaterial, charges: Sequence[Charged]) -> Iterator[Assumption]:
    run = material.run
    if run is None:
        return
    told = "Figures of merit (loss, accuracy ...) leave with noise that is counted, or not at all."
    yield judge("metrics-counted", run.spec.counts_metrics, told)
    sizes = {one.facts.silo: _num_units(one, run.spec.expected_batch_size) for one in charges}
    large = [silo for silo, num in sizes.items() if num and run.delta is not None and run.delta * num >= 1]
    most = (run.delta or 0) * max(sizes.values(), default=0)
    detail = _not_so(large) or (f"Delta times the number: {most:.2g} at most. {FAR_BELOW}" if most else "")
    yield judge("small-delta", not large, "Delta is below 1 / number of patients or records.", detail)
    if run.masking is not None:
        needed = run.masking.smallest_cohort if run.masking.num_sums else 0
        detail = f"{run.masking.num_sums} sums, the smallest over {needed} silos."
        statement = "The server opened sums over two or more silos only, and silos checked that before they helped."
        yield Assumption(name="sums-only", status=Status.DECLARED, statement=statement, detail=detail)


def _patients(material: FederationMaterial) -> Iterator[Assumption]:
    detail = "; ".join(" and ".join(overlap) for overlap in material.overlaps)
    statement = "No patient is in the data of two silos, but where specs say so."
    yield Assumption(
        name="disjoint-patients",
        status=Status.DECLARED,
        statement=statement,
        detail=f"Composed: {detail}." if detail else "Specs declare none.",
    )


def _is_as_signed(one: Charged) -> bool:
    if one.facts.latest is None:
        return True
    told = one.facts.latest.told
    found = epsilon(one.lifetime.events, delta=told.delta)
    return math.isclose(found, math.inf if told.epsilon is None else told.epsilon, rel_tol=_SLACK, abs_tol=_SLACK)


def _is_over(one: Charged) -> bool:
    if one.facts.latest is None or one.facts.latest.told.budget is None:
        return False
    told = one.facts.latest.told
    events = [event.fact() for event in (*told.spent, *told.reserved)]
    return not one.lifetime.is_bounded or epsilon(events, delta=told.delta) > (told.budget or 0) + _SLACK


def _num_units(one: Charged, expected_batch_size: int) -> int:
    """How many a silo samples from, by its largest population: the batch over the sampling rate."""
    rates = [event.sampling_rate for event in (one.alone.events if one.alone else ())]
    return round(expected_batch_size / min(rates)) if rates else 0


def _seen(name: str, statement: str, exceptions: Sequence[str], what: str) -> Assumption:
    """Passes where there are no exceptions; else people have to look at them."""
    if not exceptions:
        return judge(name, True, statement)
    detail = f"{', '.join(exceptions)}: {what}."
    return Assumption(name=name, status=Status.DECLARED, statement=statement, detail=detail)


def _not_so(names: Sequence[str]) -> str:
    return f"Not so: {', '.join(names)}." if names else ""
