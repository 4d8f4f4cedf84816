"""Why a silo refuses to go on, as codes that may travel, and the error that carries one."""

from __future__ import annotations

from enum import StrEnum

from fedplat.errors import FedplatError


class Refusal(StrEnum):
    """A rule of secure aggregation that a request breaks."""

    RUN_CHANGED = "run_changed"
    STATE_DAMAGED = "state_damaged"
    EPOCH_CLOSED = "epoch_closed"
    ROSTER_INVALID = "roster_invalid"
    ROSTER_CHANGED = "roster_changed"
    ROSTER_MISSING = "roster_missing"
    PEER_CHANGED = "peer_changed"
    PEER_KEY = "peer_key"
    SIGNATURE = "signature"
    STEP_CLOSED = "step_closed"
    STEP_JUMP = "step_jump"
    STEP_UNKNOWN = "step_unknown"
    STEP_CHANGED = "step_changed"
    NOT_MASKED = "not_masked"
    UPDATE_CHANGED = "update_changed"
    UPDATE_NOT_FINITE = "update_not_finite"
    COUNT_TOO_LARGE = "count_too_large"
    WEIGHT_TOO_LARGE = "weight_too_large"
    FIGURES_CHANGED = "figures_changed"
    SILOS_INVALID = "silos_invalid"
    SILOS_TOO_FEW = "silos_too_few"
    PEERS_UNCONFIRMED = "peers_unconfirmed"
    RELEASES_SPENT = "releases_spent"
    COHORT_INVALID = "cohort_invalid"
    COHORT_TOO_SMALL = "cohort_too_small"
    COHORT_CHANGED = "cohort_changed"
    BUNDLE_INVALID = "bundle_invalid"
    CHECKS_DIFFER = "checks_differ"
    NOT_AGREED = "not_agreed"
    ANSWERS_TOO_FEW = "answers_too_few"
    SHARES_INVALID = "shares_invalid"


_AGAIN = "the server repeats the round with a new step"
_EPOCH = "the server begins a new epoch with fresh keys from every silo"
_OTHER = "somebody shows different silos different things, or the server has lost its state"

_TEXT: dict[Refusal, tuple[str, str]] = {
    Refusal.RUN_CHANGED: ("this run id was used with another spec or server", "submit it as a new run"),
    Refusal.STATE_DAMAGED: (
        "its record of the run's masked steps is damaged",
        "the silo's log names the file; its administrator moves it away, and a new epoch begins",
    ),
    Refusal.EPOCH_CLOSED: ("this epoch is over", _EPOCH),
    Refusal.ROSTER_INVALID: ("the roster is malformed, or lacks this silo's own entry", _OTHER),
    Refusal.ROSTER_CHANGED: ("a second roster for one epoch", _OTHER),
    Refusal.ROSTER_MISSING: ("no roster was accepted yet", _EPOCH),
    Refusal.PEER_CHANGED: (
        "the key of a silo is not the one that is known here",
        "compare fingerprints by phone, then: fedplat client peers pin NAME FINGERPRINT",
    ),
    Refusal.PEER_KEY: ("the masking key of a silo is of low order", "that silo, or somebody in between, cheats"),
    Refusal.SIGNATURE: ("a signature is not valid", "the content was altered, or another key signed it"),
    Refusal.STEP_CLOSED: ("this step is over", _AGAIN),
    Refusal.STEP_JUMP: ("this step is too far ahead", _EPOCH),
    Refusal.STEP_UNKNOWN: ("this step was never begun here", _AGAIN),
    Refusal.STEP_CHANGED: ("a known step with other silos, weights or configuration", _OTHER),
    Refusal.NOT_MASKED: ("an update in clear, in a run with secure aggregation", _OTHER),
    Refusal.UPDATE_CHANGED: ("a known step with another update", _AGAIN),
    Refusal.UPDATE_NOT_FINITE: ("the update holds values that are not finite", "lower the learning rate"),
    Refusal.COUNT_TOO_LARGE: ("a count does not fit the masked vector", "allow fewer silos (n_max), or no such metric"),
    Refusal.WEIGHT_TOO_LARGE: (
        "a silo has more training records than the run allows",
        "raise [secure_aggregation] max_examples, or weight uniformly",
    ),
    Refusal.FIGURES_CHANGED: ("its metric sums have another shape than at the join", "the task is at fault"),
    Refusal.SILOS_INVALID: ("the silos of this step are not from the roster, in its order, with this one", _OTHER),
    Refusal.SILOS_TOO_FEW: ("too few silos for the smallest cohort", "wait for more silos, or lower min_cohort"),
    Refusal.PEERS_UNCONFIRMED: (
        "too few of the silos are confirmed out of band",
        "compare fingerprints by phone, then: fedplat client peers pin NAME FINGERPRINT",
    ),
    Refusal.RELEASES_SPENT: (
        "another cohort was signed for the same weights, and two sums can differ by one silo's update",
        "it goes on when that cohort's silos are back; for other ways see docs/operations.md",
    ),
    Refusal.COHORT_INVALID: ("the cohort is malformed, or not one with this silo's upload", _OTHER),
    Refusal.COHORT_TOO_SMALL: ("the cohort is too small", "wait for more silos, or lower min_cohort"),
    Refusal.COHORT_CHANGED: ("a second cohort for one step", _OTHER),
    Refusal.BUNDLE_INVALID: ("the share bundle of a silo is missing or cannot be opened", _AGAIN),
    Refusal.CHECKS_DIFFER: ("its masks do not fit those of the others: it has other keys, or saw other terms", _AGAIN),
    Refusal.NOT_AGREED: ("no cohort was agreed on for this step", "the server asks for agreement first"),
    Refusal.ANSWERS_TOO_FEW: ("too few silos have signed or answered to open the sum", "ask again, or: " + _AGAIN),
    Refusal.SHARES_INVALID: ("what silos answered does not give the secret that a silo committed to", _AGAIN),
}


def describe(refusal: Refusal) -> tuple[str, str]:
    """What happened, and what to do next."""
    return _TEXT[refusal]


class RefusedError(FedplatError):
    """A request that breaks a rule of secure aggregation.

    `silo`: the silo that it is about, if it is about one. `lowest_step`: the lowest step that is acceptable,
    if the step was not.
    """

    def __init__(self, refusal: Refusal, *, silo: str = "", lowest_step: int = 0) -> None:
        what, hint = _TEXT[refusal]
        about = f" ({silo})" if silo else f" (lowest acceptable: {lowest_step})" if lowest_step else ""
        super().__init__(f"secure aggregation: {what}{about}", hint=hint)
        self.refusal = refusal
        self.silo = silo
        self.lowest_step = lowest_step
