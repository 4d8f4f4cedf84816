"""What this silo allows. The file is the silo's own; the server cannot weaken it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedplat.durable import write_atomic
from fedplat.errors import PolicyError, SpecError
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec, Weighting
from fedplat.spec.load import validate
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

# A run of more rounds is refused.
most_rounds = 1000

# Whether the server learns how many training records this silo has. A run that weights by examples needs it.
share_counts = true

# What the server learns of this silo's metrics:
#   "sums"     they are added up into the federation's figures; yours alone are not kept or shown
#   "per-silo" the server may also keep and show yours
#   "none"     nothing
share_metrics = "sums"

# Threads for training, all workers together; 0 is every core of this machine.
max_threads = 0

# GPUs that `fedplat client join --gpus` may name: "all", or a list such as [0, 1]. Without --gpus none is used.
allowed_gpus = "all"

# Runs at the same time; others are told to wait.
max_parallel_runs = 1
"""


class Rule(StrEnum):
    """The rules by which a run can be refused; the server hears the name."""

    ALLOWED_TASKS = "allowed_tasks"
    ALLOWED_STRATEGIES = "allowed_strategies"
    SMALLEST_COHORT = "smallest_cohort"
    MOST_ROUNDS = "most_rounds"
    SHARE_COUNTS = "share_counts"
    UNREADABLE = "the policy file is broken"


class Policy(BaseModel):
    """policy.toml; `TEMPLATE` explains each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allowed_tasks: tuple[str, ...] = ("tabular",)
    allowed_strategies: tuple[str, ...] = ("*",)
    smallest_cohort: Annotated[int, Field(ge=1, le=1000)] = 1
    most_rounds: Annotated[int, Field(ge=1)] = 1000
    share_counts: bool = True
    share_metrics: Literal["sums", "per-silo", "none"] = "sums"
    max_threads: Annotated[int, Field(ge=0, le=4096)] = 0
    allowed_gpus: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    max_parallel_runs: Annotated[int, Field(ge=1, le=64)] = 1

    def check(self, spec: RunSpec, num_silos: int) -> Reason | None:
        """Why a run of `num_silos` silos is refused; None if it is allowed."""
        kept = {
            Rule.ALLOWED_TASKS: _listed(spec.task.name, self.allowed_tasks),
            Rule.ALLOWED_STRATEGIES: _listed(spec.strategy.name, self.allowed_strategies),
            Rule.SMALLEST_COHORT: num_silos >= self.smallest_cohort,
            Rule.MOST_ROUNDS: spec.rounds.count <= self.most_rounds,
            Rule.SHARE_COUNTS: self.share_counts or spec.strategy.weighting is not Weighting.EXAMPLES,
        }
        broken = next((rule for rule, holds in kept.items() if not holds), None)
        return Reason.of(Code.POLICY, rule=broken.value) if broken else None

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


def _listed(name: str, allowed: tuple[str, ...]) -> bool:
    return "*" in allowed or name in allowed
