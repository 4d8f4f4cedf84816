"""Differential privacy, as a run spec asks for it, and what else in a spec it rules out."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from fedplat.spec.base import Section
from fedplat.spec.weighting import Weighting

if TYPE_CHECKING:
    from fedplat.spec.model import RunSpec

_LATER = ("distributed", "silo")
_FOR_RECORD = (
    "metrics",
    "metrics_noise_multiplier",
    "unit",
    "epsilon",
    "delta",
    "noise_multiplier",
    "expected_batch_size",
)
_NOISED_FIGURES = ("loss", "accuracy", "precision", "recall", "f1")


class PrivacyMode(StrEnum):
    """`record`: DP-SGD inside each silo, each with an epsilon of its own; nobody outside it has to be trusted."""

    NONE = "none"
    RECORD = "record"


class PrivacyUnit(StrEnum):
    """Whose gradient is clipped: each patient's (the mean of their records' gradients), or each record's."""

    PATIENT = "patient"
    RECORD = "record"


class PrivateMetrics(StrEnum):
    """What leaves of the figures of training and evaluation: nothing; those on test records, with noise that every
    epsilon counts; or all of them, as they are."""

    NONE = "none"
    NOISED = "noised"
    UNPROTECTED = "unprotected"


def _offered(value: object) -> object:
    if value in _LATER:
        raise ValueError(f"{value!r} is not offered by this version")
    return value


class PrivacySection(Section):
    """`mode = "record"` trains by DP-SGD. Then `metrics` and `delta` have to be given, and either `epsilon` (each silo
    calibrates its noise for the whole planned run) or `noise_multiplier` (of `clip_norm`).

    `unit` is `patient` where the task names a patient column, else `record`, unless it is said here. A step samples
    each unit with probability `expected_batch_size` / number of units and divides by `expected_batch_size`, a constant:
    [training] batch_size unless it is said here. [training] batch_size is then how many records are in memory at once.

    With noised metrics each unit of the test records adds a vector of norm at most 1 to the sums of an evaluation, and
    `metrics_noise_multiplier` is the standard deviation of the noise on each of them. No record's loss counts more than
    `metrics_loss_clip`.
    """

    mode: Annotated[PrivacyMode, BeforeValidator(_offered)] = PrivacyMode.NONE
    metrics: PrivateMetrics | None = None
    metrics_noise_multiplier: Annotated[float, Field(gt=0, le=1e6)] | None = None
    metrics_loss_clip: Annotated[float, Field(gt=0, le=1e6)] = 3.0
    unit: PrivacyUnit | None = None
    epsilon: Annotated[float, Field(gt=0, le=1000)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0, le=1e6)] | None = None
    clip_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    expected_batch_size: Annotated[int, Field(ge=1, le=10_000_000)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.mode is PrivacyMode.NONE:
            given = [name for name in _FOR_RECORD if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{', '.join(given)} protect nobody without mode = 'record'")
            return self
        if self.metrics is None:
            raise ValueError("say what happens to the metrics: metrics = 'none', 'noised' or 'unprotected'")
        if self.metrics is PrivateMetrics.NOISED and self.metrics_noise_multiplier is None:
            raise ValueError("metrics = 'noised' needs metrics_noise_multiplier, the noise of each evaluation")
        if self.metrics is not PrivateMetrics.NOISED and self.metrics_noise_multiplier is not None:
            raise ValueError("metrics_noise_multiplier is for metrics = 'noised' alone")
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give either epsilon or noise_multiplier")
        if self.delta is None:
            raise ValueError("give delta; well below 1 / number of patients")
        return self

    @property
    def is_private(self) -> bool:
        """Whether silos train by DP-SGD."""
        return self.mode is PrivacyMode.RECORD


def privacy_unit(spec: RunSpec) -> PrivacyUnit:
    """Whom the guarantee is for."""
    default = PrivacyUnit.PATIENT if spec.task.options.get("patient") else PrivacyUnit.RECORD
    return spec.privacy.unit or default


def expected_batch_size(spec: RunSpec) -> int:
    """The declared mean number of units in a step, which sums of gradients are divided by whatever was drawn."""
    return spec.privacy.expected_batch_size or spec.training.batch_size


def sampling_rate(spec: RunSpec, num_units: int) -> float:
    """The probability with which a step samples a unit, at a silo with so many."""
    return min(1.0, expected_batch_size(spec) / num_units)


def steps_per_round(spec: RunSpec, num_units: int) -> int:
    """How many noised steps a round has at a silo with so many units; an epoch is 1 / `sampling_rate` of them."""
    return spec.training.steps or -(-num_units // expected_batch_size(spec)) * (spec.training.epochs or 0)


def num_evaluations(spec: RunSpec) -> int:
    """How often a silo measures a model in the whole run: in every k-th round, and the last one at the end."""
    return -(-spec.rounds.count // spec.evaluation.every) + 1


def check_private(spec: RunSpec) -> None:
    """ValueError naming all that would void the guarantee, or promise what is not there."""
    if spec.privacy.is_private and (problems := list(_problems(spec))):
        raise ValueError("with [privacy] mode = 'record': " + "; ".join(problems))


def _problems(spec: RunSpec) -> Iterator[str]:
    training, options = spec.training, spec.task.options
    if training.gradient_clip is not None:
        yield "[training] gradient_clip has no place, for [privacy] clip_norm clips each gradient"
    if training.local_checkpoint_steps is not None:
        yield "[training] local_checkpoint_steps has no place, for a step that is repeated is a step that is spent"
    if spec.strategy.weighting == Weighting.EXAMPLES:
        yield "[strategy] weighting must be 'uniform' or 'declared', for weights must not depend on the data"
    if spec.task.name == "tabular" and options.get("scaling") == "local":
        yield "[task.options] scaling must be 'declared', for one record moves the mean that scales all others"
    if spec.task.name == "tabular" and spec.privacy.unit is PrivacyUnit.PATIENT and not options.get("patient"):
        yield "unit = 'patient' needs a patient column in [task.options]"
    if spec.privacy.metrics is PrivateMetrics.NONE:
        yield from _without_metrics(spec)
    if spec.privacy.metrics is PrivateMetrics.NOISED:
        yield from _without_histograms(spec)


def _without_metrics(spec: RunSpec) -> Iterator[str]:
    asked = [name for name in ("patience", "target", "kl") if getattr(spec.stop, name) is not None]
    needs = [f"[stop] {name}" for name in asked] + ["[checkpoint] keep_best"] * (spec.checkpoint.keep_best is not None)
    if needs:
        yield f"metrics = 'none' leaves no figures for {', '.join(needs)}"


def _without_histograms(spec: RunSpec) -> Iterator[str]:
    """Noise on each of a thousand bins would leave nothing of them, and squared errors in the target's own unit have no
    bound that a spec could name."""
    stop, best = spec.stop, spec.checkpoint.keep_best
    needs = ["[stop] kl"] * (stop.kl is not None)
    if (stop.patience is not None or stop.target is not None) and stop.metric not in _NOISED_FIGURES:
        needs.append(f"[stop] metric = '{stop.metric}'")
    if best is not None and best not in _NOISED_FIGURES:
        needs.append(f"[checkpoint] keep_best = '{best}'")
    if needs:
        yield f"metrics = 'noised' gives {', '.join(_NOISED_FIGURES)} alone, which is not enough for {', '.join(needs)}"
