"""What a silo insists on, whatever the server asks (protocol, 4.8 and 4.9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedplat.errors import PolicyError
from fedplat.secagg.cohort import in_order
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.keys import CHECK_BYTES, digest
from fedplat.secagg.messages import Member, Roster
from fedplat.secagg.roster import check_roster, fingerprints
from fedplat.secagg.state import Release, SiloState, StepRecord
from fedplat.secagg.terms import StepTerms
from fedplat.secagg.thresholds import colluders_tolerated, smallest_cohort

MAX_STEP_JUMP = 1000


@dataclass(frozen=True, kw_only=True)
class SiloRules:
    """What a silo's own policy says, whatever the server asks. Made afresh for every question."""

    known: Mapping[str, str]
    """The fingerprints of other silos by name: seen before, or pinned."""
    pinned: frozenset[str] = frozenset()
    """Whose were confirmed out of band."""
    min_pinned_cohort: int = 0
    """The fewest members of a cohort, this silo included, that were confirmed out of band."""
    min_cohort: int = 3
    max_releases_per_model: int = 1
    """How many different cohorts are signed for the same weights. Two that differ by one silo tell its update."""

    def __post_init__(self) -> None:
        if self.min_cohort < 2 or self.max_releases_per_model < 1 or self.min_pinned_cohort < 0:
            raise PolicyError(
                "secure aggregation needs min_cohort >= 2, max_releases_per_model >= 1, min_pinned_cohort >= 0",
                hint="A sum over one silo is that silo's update.",
            )

    def num_confirmed(self, me: str, names: Iterable[str]) -> int:
        """How many of the names are confirmed: pinned, or this silo itself."""
        return sum(name == me or name in self.pinned for name in names)

    def check_known(self, roster: Roster, names: Iterable[str]) -> None:
        """Raises RefusedError for a silo whose key in the roster is not, or not any more, the one known here."""
        shown = fingerprints(roster)
        for name in names:
            if self.known.get(name, shown[name]) != shown[name]:
                raise RefusedError(Refusal.PEER_CHANGED, silo=name)


def check_new_roster(state: SiloState, rules: SiloRules, roster: Roster) -> None:
    """Raises RefusedError unless this may be the roster of the state's epoch."""
    check_roster(state.binding, roster, rules.known)
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
    # Among the same silos, enough of those who signed a cohort are needed for another, and they refuse. Among others,
    # whoever has signed must not take part at all: then two sums differ by everybody who signed the first.
    before = state.releases.get(terms.weights, ())
    invited = _names_digest(terms.silos)
    num_cohorts = len({release.cohort for release in before})
    if num_cohorts >= rules.max_releases_per_model and all(invited != release.silos for release in before):
        raise RefusedError(Refusal.RELEASES_SPENT)


def check_cohort(
    state: SiloState, rules: SiloRules, record: StepRecord, cohort: Sequence[Member]
) -> tuple[Release, ...]:
    """What this silo has released of the step's weights, with this cohort.

    Raises RefusedError unless it may consent to opening the sum of these uploads.
    """
    assert state.roster is not None
    names = [member.name for member in cohort]
    if not in_order(names, record.silos) or Member(name=state.name, upload_id=record.upload_id) not in cohort:
        raise RefusedError(Refusal.COHORT_INVALID)
    if len(cohort) < max(record.threshold, rules.min_cohort):
        raise RefusedError(Refusal.COHORT_TOO_SMALL)
    rules.check_known(state.roster, names)
    if rules.num_confirmed(state.name, names) < rules.min_pinned_cohort:
        raise RefusedError(Refusal.PEERS_UNCONFIRMED)
    return _released(state, rules, record, names)


def _released(state: SiloState, rules: SiloRules, record: StepRecord, names: Sequence[str]) -> tuple[Release, ...]:
    """The same cohort again, also from other silos, tells nothing new."""
    before, cohort = state.releases.get(record.weights, ()), _names_digest(names)
    release = Release(silos=_names_digest(record.silos), cohort=cohort)
    if len({*(r.cohort for r in before), cohort}) > rules.max_releases_per_model:
        raise RefusedError(Refusal.RELEASES_SPENT)
    return tuple(dict.fromkeys((*before, release)))


def _names_digest(names: Sequence[str]) -> bytes:
    return digest("names", len(names), *names)[:CHECK_BYTES]


def _check_silos(state: SiloState, rules: SiloRules, terms: StepTerms) -> None:
    assert state.roster is not None
    silos, num_silos = terms.silos, len(terms.silos)
    order = [key.name for key in state.roster.keys]
    if not in_order(silos, order) or state.name not in silos or num_silos > terms.vector.n_max:
        raise RefusedError(Refusal.SILOS_INVALID)
    rules.check_known(state.roster, silos)
    if smallest_cohort(num_silos, terms.strong, rules.min_cohort) > num_silos:
        raise RefusedError(Refusal.SILOS_TOO_FEW)
    # Silos that nobody has confirmed may be the server's own: as many as that must be harmless as colluders, for
    # `threshold` of them open everything between themselves, whatever cohort is signed.
    num_strange = num_silos - rules.num_confirmed(state.name, silos)
    if rules.min_pinned_cohort and num_strange > colluders_tolerated(num_silos, terms.strong, rules.min_cohort):
        raise RefusedError(Refusal.PEERS_UNCONFIRMED)
