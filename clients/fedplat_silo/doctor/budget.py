"""The check of what a run would cost the patients, against what is left of their budget."""

from __future__ import annotations

from fedplat.doctor import Finding, failed, ok
from fedplat.errors import NotFoundError
from fedplat.privacy import epsilon
from fedplat.privacy.values import round_up
from fedplat.spec import RunSpec
from fedplat.spec.privacy import privacy_unit
from fedplat_silo.accounts import NO_DATA
from fedplat_silo.doctor.visit import Visit
from fedplat_silo.ledger import Keeper, find_book, plan_run, rules
from fedplat_silo.ledger.overview import look_over
from fedplat_silo.ledger.state import State, steps_of


def check_budget(visit: Visit, spec: RunSpec, num_units: int) -> Finding:
    """By the rules of the ledger, without a reservation. Raises LedgerError, PrivacyError."""
    if spec.data.name == NO_DATA:
        return ok("the run has no data")
    plan = plan_run(spec, num_units)
    said = "no differential privacy"
    if plan:
        delta = spec.privacy.delta
        assert delta is not None
        cost = epsilon(plan, delta=delta)
        noise = min(event.noise_multiplier for event in plan)
        refusal = visit.policy.check_plan(epsilon=cost, noise_multiplier=noise)
        said = f"epsilon {round_up(cost, 3):.3f} at delta {delta:g}, noise {noise:.3f}"
        if refusal is not None:
            return failed(f"the policy refuses a run of {said}: {refusal}", f"It is in {visit.home.policy}.")
    try:
        keeper = Keeper(find_book(visit.home), visit.membership)
    except NotFoundError:
        return ok(f"{said}; no budget is set")
    name = f"{spec.name} (plan)"  # no run's id
    keeper.check(name, spec, None)
    keeper.patient_column(spec)
    state = keeper.book.look()
    if spec.data.name in state.datasets:
        rules.check_plan(state, name, state.datasets[spec.data.name], steps_of(plan))
    return ok(f"{said} for each {privacy_unit(spec).value}; {_left(state, spec.data.name)}" if plan else said)


def _left(state: State, dataset: str) -> str:
    found = next((each for each in look_over(state) if dataset in each.datasets), None)
    if found is None or found.budget is None:
        return "no budget is set"
    return f"it fits: {round_up(found.committed, 3):.3f} of {found.budget:g} are spent or reserved"
