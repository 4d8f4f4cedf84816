"""What this silo allows. The file is the silo's own; the server cannot weaken it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedplat.durable import write_atomic
from fedplat.errors import PolicyError, SpecError
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec, Weighting
from fedplat.spec.load import validate
from fedplat.spec.privacy import PrivacyUnit, privacy_unit
from fedplat.spec.secure import MAX_SILOS
from fedplat_silo.toml import read_toml

TEMPLATE = """\
# What this silo allows. A run that asks for more is refused before any data is touched.
# The file is read again at every run that asks; nothing needs to be restarted.

# Tasks that may run on this silo's data, by name; "*" allows every installed one.
allowed_tasks = ["tabular"]

# Strategies that the server may use; "*" allows all.
allowed_strategies = ["*"]

# A run in which fewer silos take part is refused, and no round goes into a model with fewer updates than this.
smallest_cohort = 1

# Whether every run has to aggregate securely, so that the server learns sums over silos and no update of this one.
require_secure_aggregation = false

# Whether two thirds of a round's silos must agree to open a sum, not half of them: more of them may then side with the
# server, and fewer may vanish ([secure_aggregation] strong).
require_strong = false

# With secure aggregation, no sum over fewer silos than these is opened; 2 hides from the server only.
min_cohort = 3

# Of those, how many must have been confirmed out of band, this silo included: `fedplat client peers pin`. The server
# introduces the others and could invent them.
min_pinned_cohort = 0

# Different sets of silos whose sum is opened for one and the same model. Two that differ by one silo tell its update.
max_releases_per_model = 1

# A run of more rounds is refused.
most_rounds = 1000

# Whether the server learns how many training records this silo has. A run that weights by examples needs it.
share_counts = true

# What the server learns of this silo's metrics:
#   "sums"     they are added up into the federation's figures; yours alone are not kept or shown
#   "per-silo" the server may also keep and show yours
#   "none"     nothing; with secure aggregation then no silo's are seen, for a sum over the others would be theirs
share_metrics = "sums"

# Whether a run without differential privacy is refused. (On a dataset with a privacy budget it always is.)
require_privacy = false

# Privacy modes that runs may have, "none" being one; "*" allows all.
allowed_privacy_modes = ["*"]

# A private run that may cost a patient more than this epsilon is refused; inf is no limit. What all runs together may
# cost is the dataset's budget: `fedplat client budget set`.
largest_epsilon = inf

# A private run with less noise than this, in multiples of the clip norm, is refused; so are noised metrics with less.
smallest_noise_multiplier = 0.0

# Whom a private run has to protect: "patient", or "record" (a run that protects patients is then welcome as well).
privacy_unit = "record"

# Whether somebody here has to agree to each run first:
#   "auto"    what this file allows takes part
#   "manual"  it waits: `fedplat client runs pending` lists, `fedplat client approve RUN` agrees
approval = "auto"

# When runs may train, by this machine's clock, for example "20:00-06:30". Outside these hours rounds are left out.
allowed_hours = "00:00-24:00"

# Threads for training, all workers together; 0 is every core of this machine.
max_threads = 0

# GPUs that `fedplat client join --gpus` may name: "all", or a list such as [0, 1]. Without --gpus none is used.
allowed_gpus = "all"

# Runs at the same time; others are told to wait.
max_parallel_runs = 1
"""


_HOURS = r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$"


class Rule(StrEnum):
    """The rules by which a run can be refused; the server hears the name."""

    ALLOWED_TASKS = "allowed_tasks"
    ALLOWED_STRATEGIES = "allowed_strategies"
    SMALLEST_COHORT = "smallest_cohort"
    REQUIRE_SECURE_AGGREGATION = "require_secure_aggregation"
    REQUIRE_STRONG = "require_strong"
    MIN_COHORT = "min_cohort"
    MOST_ROUNDS = "most_rounds"
    SHARE_COUNTS = "share_counts"
    REQUIRE_PRIVACY = "require_privacy"
    ALLOWED_PRIVACY_MODES = "allowed_privacy_modes"
    LARGEST_EPSILON = "largest_epsilon"
    SMALLEST_NOISE_MULTIPLIER = "smallest_noise_multiplier"
    PRIVACY_UNIT = "privacy_unit"
    UNREADABLE = "the policy file is broken"


class Policy(BaseModel):
    """policy.toml; `TEMPLATE` explains each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allowed_tasks: tuple[str, ...] = ("tabular",)
    allowed_strategies: tuple[str, ...] = ("*",)
    smallest_cohort: Annotated[int, Field(ge=1, le=1000)] = 1
    require_secure_aggregation: bool = False
    require_strong: bool = False
    min_cohort: Annotated[int, Field(ge=2, le=MAX_SILOS)] = 3
    min_pinned_cohort: Annotated[int, Field(ge=0, le=MAX_SILOS)] = 0
    max_releases_per_model: Annotated[int, Field(ge=1, le=1000)] = 1
    most_rounds: Annotated[int, Field(ge=1)] = 1000
    share_counts: bool = True
    share_metrics: Literal["sums", "per-silo", "none"] = "sums"
    require_privacy: bool = False
    allowed_privacy_modes: tuple[str, ...] = ("*",)
    largest_epsilon: Annotated[float, Field(gt=0)] = math.inf
    smallest_noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    privacy_unit: Literal["patient", "record"] = "record"
    approval: Literal["auto", "manual"] = "auto"
    allowed_hours: Annotated[str, Field(pattern=_HOURS)] = "00:00-24:00"
    max_threads: Annotated[int, Field(ge=0, le=4096)] = 0
    allowed_gpus: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    max_parallel_runs: Annotated[int, Field(ge=1, le=64)] = 1

    def check(self, spec: RunSpec, num_silos: int) -> Reason | None:
        """Why a run of `num_silos` silos is refused; None if it is allowed."""
        secure = spec.secure_aggregation
        kept = {
            Rule.ALLOWED_TASKS: _listed(spec.task.name, self.allowed_tasks),
            Rule.ALLOWED_STRATEGIES: _listed(spec.strategy.name, self.allowed_strategies),
            Rule.SMALLEST_COHORT: num_silos >= self.smallest_cohort,
            Rule.REQUIRE_SECURE_AGGREGATION: secure.enabled or not self.require_secure_aggregation,
            Rule.REQUIRE_STRONG: secure.strong or not (secure.enabled and self.require_strong),
            Rule.MIN_COHORT: num_silos >= self.min_cohort or not secure.enabled,
            Rule.MOST_ROUNDS: spec.rounds.count <= self.most_rounds,
            Rule.SHARE_COUNTS: self.share_counts
            or spec.strategy.weighting is not Weighting.EXAMPLES
            or (secure.enabled and secure.max_examples is not None),
        }
        return _first_broken(kept) or self._check_privacy(spec)

    def check_plan(self, *, epsilon: float, noise_multiplier: float) -> Reason | None:
        """Why a private run is refused that comes to this here, where its noise and its steps are known."""
        kept = {
            Rule.LARGEST_EPSILON: epsilon <= self.largest_epsilon,
            Rule.SMALLEST_NOISE_MULTIPLIER: noise_multiplier >= self.smallest_noise_multiplier,
        }
        return _first_broken(kept)

    def is_open(self, at: time) -> bool:
        """Whether runs may train at this time of day."""
        begin, end = (60 * int(text[:2]) + int(text[3:]) for text in self.allowed_hours.split("-"))
        now = 60 * at.hour + at.minute
        return begin <= now < end if begin < end else now >= begin or now < end

    def _check_privacy(self, spec: RunSpec) -> Reason | None:
        privacy = spec.privacy
        kept = {
            Rule.REQUIRE_PRIVACY: privacy.is_private or not self.require_privacy,
            Rule.ALLOWED_PRIVACY_MODES: _listed(privacy.mode, self.allowed_privacy_modes),
        }
        if not privacy.is_private:
            return _first_broken(kept)
        noises = [n for n in (privacy.noise_multiplier, privacy.metrics_noise_multiplier) if n is not None]
        kept |= {
            Rule.PRIVACY_UNIT: privacy_unit(spec) is PrivacyUnit.PATIENT or self.privacy_unit == "record",
            Rule.LARGEST_EPSILON: privacy.epsilon is None or privacy.epsilon <= self.largest_epsilon,
            Rule.SMALLEST_NOISE_MULTIPLIER: all(noise >= self.smallest_noise_multiplier for noise in noises),
        }
        return _first_broken(kept)

    def fewest_updates(self, spec: RunSpec) -> int:
        """No round goes into a model with fewer."""
        return max(self.smallest_cohort, self.min_cohort if spec.secure_aggregation.enabled else 1)

    def check_gpus(self, gpus: tuple[int, ...]) -> None:
        """Raises PolicyError if a GPU is asked for that is not allowed."""
        refused = [gpu for gpu in gpus if self.allowed_gpus != "all" and gpu not in self.allowed_gpus]
        if refused:
            raise PolicyError(
                f"the policy does not allow GPU {', '.join(map(str, refused))}",
                hint="Change allowed_gpus in policy.toml, or --gpus.",
            )


def load_policy(path: Path) -> Policy:
    """Reads policy.toml, and writes it with its comments first if there is none. PolicyError if it is broken."""
    if not path.exists():
        write_atomic(path, TEMPLATE.encode())
    raw = read_toml(path, PolicyError, hint="Mend the file, or move it away to get a fresh one.")
    try:
        return validate(Policy, raw, str(path))
    except SpecError as error:
        raise PolicyError(
            error.message, hint="`fedplat client policy` shows the policy; a fresh file explains every key."
        ) from None


def _first_broken(kept: Mapping[Rule, bool]) -> Reason | None:
    broken = next((rule for rule, holds in kept.items() if not holds), None)
    return Reason.of(Code.POLICY, rule=broken.value) if broken else None


def _listed(name: str, allowed: tuple[str, ...]) -> bool:
    return "*" in allowed or name in allowed
