"""What a silo insists on, whatever the server asks (protocol, 4.8 and 4.9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedplat.errors import PolicyError
from fedplat.secagg.cohort import in_order
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import Member, Roster
from fedplat.secagg.roster import check_roster
from fedplat.secagg.state import SiloState, StepRecord
from fedplat.secagg.terms import StepTerms
from fedplat.secagg.thresholds import colluders_tolerated, smallest_cohort

MAX_STEP_JUMP = 1000


@dataclass(frozen=True)
class SiloRules:
    """What a silo's own policy says, whatever the server asks."""

    min_cohort: int = 3
    max_releases_per_model: int = 2
    min_pinned_cohort: int = 0
    """The fewest members of a cohort, this silo included, that were confirmed out of band."""
    pinned: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.min_cohort < 2 or self.max_releases_per_model < 1 or self.min_pinned_cohort < 0:
            raise PolicyError(
                "secure aggregation needs min_cohort >= 2, max_releases_per_model >= 1, min_pinned_cohort >= 0",
                hint="A sum over one silo is that silo's update.",
            )

    def num_confirmed(self, me: str, names: Iterable[str]) -> int:
        """How many of the names are confirmed: pinned, or this silo itself."""
        return sum(name == me or name in self.pinned for name in names)


def check_new_roster(state: SiloState, rules: SiloRules, roster: Roster, known: Mapping[str, str]) -> None:
    """Raises RefusedError unless this may be the roster of the state's epoch."""
    check_roster(state.binding, roster, known)
    mine = next((key for key in roster.keys if key.name == state.name), None)
    if mine != state.signed_key:
        raise RefusedError(Refusal.ROSTER_INVALID)
    if len(roster.keys) < rules.min_cohort:
        raise RefusedError(Refusal.SILOS_TOO_FEW)
    if roster.first_step < state.next_step:
        raise RefusedError(Refusal.STEP_CLOSED, lowest_step=state.next_step)


def check_new_step(state: SiloState, rules: SiloRules, terms: StepTerms) -> None:
    """Raises RefusedError unless a step may be opened on these terms."""
    if terms.step < state.next_step:
        raise RefusedError(Refusal.STEP_CLOSED, lowest_step=state.next_step)
    if terms.step - (state.next_step - 1) > MAX_STEP_JUMP:
        raise RefusedError(Refusal.STEP_JUMP, lowest_step=state.next_step)
    _check_silos(state, rules, terms)
    if state.releases.get(terms.weights, 0) >= rules.max_releases_per_model:
        raise RefusedError(Refusal.RELEASES_SPENT)


def check_cohort(name: str, rules: SiloRules, record: StepRecord, cohort: Sequence[Member]) -> None:
    """Raises RefusedError unless this silo may consent to opening the sum of these uploads."""
    names = [member.name for member in cohort]
    if not in_order(names, record.silos) or Member(name=name, upload_id=record.upload_id) not in cohort:
        raise RefusedError(Refusal.COHORT_INVALID)
    if len(cohort) < max(record.threshold, rules.min_cohort):
        raise RefusedError(Refusal.COHORT_TOO_SMALL)
    if rules.num_confirmed(name, names) < rules.min_pinned_cohort:
        raise RefusedError(Refusal.PEERS_UNCONFIRMED)


def _check_silos(state: SiloState, rules: SiloRules, terms: StepTerms) -> None:
    assert state.roster is not None
    silos, num_silos = terms.silos, len(terms.silos)
    order = [key.name for key in state.roster.keys]
    if not in_order(silos, order) or state.name not in silos or num_silos > terms.vector.n_max:
        raise RefusedError(Refusal.SILOS_INVALID)
    if smallest_cohort(num_silos, terms.strong, rules.min_cohort) > num_silos:
        raise RefusedError(Refusal.SILOS_TOO_FEW)
    # Silos that nobody has confirmed may be the server's own: as many as that must be harmless as colluders, for
    # `threshold` of them open everything between themselves, whatever cohort is signed.
    num_strange = num_silos - rules.num_confirmed(state.name, silos)
    if rules.min_pinned_cohort and num_strange > colluders_tolerated(num_silos, terms.strong, rules.min_cohort):
        raise RefusedError(Refusal.PEERS_UNCONFIRMED)
