"""The parts of a run spec."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from fedplat.canonical import canonical_json, sha256_hex
from fedplat.spec.base import DIGEST_OR_EMPTY, NAME, SILO_NAME, Section
from fedplat.spec.governance import GovernanceSection
from fedplat.spec.privacy import PrivacySection, check_private
from fedplat.spec.secure import MAX_SILOS, SecureAggregationSection
from fedplat.spec.weighting import Weighting, check_weights

Name = Annotated[str, StringConstraints(pattern=NAME)]
SiloName = Annotated[str, StringConstraints(pattern=SILO_NAME)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(gt=0, lt=2**53)]
Timeout = Annotated[float, Field(gt=0, le=1e8)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class StrategyName(StrEnum):
    """How the mean update becomes the next model."""

    FEDAVG = "fedavg"
    FEDPROX = "fedprox"
    FEDAVGM = "fedavgm"
    FEDADAM = "fedadam"
    FEDYOGI = "fedyogi"
    FEDADAGRAD = "fedadagrad"


class Optimizer(StrEnum):
    """The local optimiser."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


class Split(StrEnum):
    """Where a silo's test set comes from."""

    HASH = "hash"
    GIVEN = "given"


class Precision(StrEnum):
    """How a float32 travels: whole, or as its upper half (bfloat16, rounded to the nearest, ties to even)."""

    FP32 = "fp32"
    BF16 = "bf16"

    @property
    def item_bytes(self) -> int:
        """Bytes of one number."""
        return 4 if self is Precision.FP32 else 2


class TaskSection(Section):
    """The task, by the name under which it is installed at the silos, and its options."""

    name: Name
    options: dict[str, JsonValue] = Field(default_factory=dict)


class DataSection(Section):
    """Which dataset of the silo, and how it is split.

    `hash`: a keyed hash of the patient key, else of the record, decides; nothing depends on the order of rows.
    `given`: the dataset is a folder with a train and a test file.
    """

    name: Name
    split: Split = Split.HASH
    test_share: Fraction = 0.2
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class ModelSection(Section):
    """Where the first weights come from, and which parameters are shared, local or frozen (glob patterns).

    `init`: `seed` (one silo builds the model from the run's seed), a path to a safetensors file (when the run
    is submitted), or `sha256:...` (what a submitted run carries). `fingerprint`, if given, is the layout that
    every silo must have.
    """

    init: Annotated[str, StringConstraints(min_length=1, max_length=1000)] = "seed"
    shared: tuple[Pattern, ...] = ("*",)
    local: tuple[Pattern, ...] = ()
    frozen: tuple[Pattern, ...] = ()
    fingerprint: Annotated[str, StringConstraints(pattern=DIGEST_OR_EMPTY)] = ""


class Figure(StrEnum):
    """A figure of the federation's test records. Of losses and errors less is better, of the others more."""

    LOSS = "loss"
    ACCURACY = "accuracy"
    PRECISION = "precision"
    RECALL = "recall"
    F1 = "f1"
    AUROC = "auroc"
    MAE = "mae"
    RMSE = "rmse"
    R2 = "r2"

    @property
    def less_is_better(self) -> bool:
        """Whether a smaller value is the better one."""
        return self in (Figure.LOSS, Figure.MAE, Figure.RMSE)


class CheckpointSection(Section):
    """Which checkpoints stay. The newest round's is always there; of the older ones every `every`-th round counts,
    and of those the last `keep_last` stay, with the one that was best by `keep_best`."""

    every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    keep_last: Annotated[int, Field(ge=1, le=1_000_000)] = 3
    keep_best: Figure | None = None


class StopSection(Section):
    """When a run ends before its last round. Figures are known one round late: those of round r come with r + 1.

    `patience`: so many evaluations in a row without a gain of more than `min_gain` in `metric`. `target`: `metric`
    has reached it. `divergence`: |sum w u| / sum w |u| has fallen below it, so the silos' updates cancel out. `kl`: the
    KL divergence of a silo's score histogram from the federation's (where policies share them) is above it; not with
    secure aggregation.
    `wall_clock_s`: the run has taken that long. `max_update_norm`: a mean update above it is not applied; in a plain
    run the silo with the largest update is left out of that round, with secure aggregation the run pauses.
    """

    metric: Figure = Figure.LOSS
    patience: Annotated[int, Field(ge=1)] | None = None
    min_gain: NonNegative = 0.0
    target: float | None = None
    divergence: Annotated[float, Field(gt=0, lt=1)] | None = None
    kl: Positive | None = None
    wall_clock_s: Positive | None = None
    max_update_norm: Positive | None = None


class RoundsSection(Section):
    """How many rounds, and how long one waits for its silos, in seconds."""

    count: Annotated[int, Field(ge=1, le=1_000_000)]
    timeout_s: Timeout = 600.0


class SilosSection(Section):
    """Who takes part. `names` empty: every enrolled silo. The run starts when all of them have answered, or
    after `join_timeout_s` with at least `minimum`; below the minimum it waits for `wait_s`, then pauses.
    `late_join`: silos that connect later take part from then on."""

    minimum: Annotated[int, Field(ge=1, le=1000)] = 1
    names: tuple[SiloName, ...] = ()
    join_timeout_s: Timeout = 120.0
    wait_s: Timeout = 3600.0
    late_join: bool = False

    @model_validator(mode="after")
    def _enough_names(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("a silo is named twice")
        if self.names and len(self.names) < self.minimum:
            raise ValueError(f"minimum is {self.minimum}, but only {len(self.names)} silos are named")
        return self


class StrategySection(Section):
    """The server's step. Fields that a strategy does not have are refused, not ignored. `weights`: of each named silo,
    where `weighting` is declared; only how they compare counts."""

    name: StrategyName = StrategyName.FEDAVG
    weighting: Weighting = Weighting.EXAMPLES
    weights: dict[SiloName, Weight] = Field(default_factory=dict, max_length=1000)
    proximal_mu: NonNegative | None = None
    learning_rate: Positive | None = None
    momentum: Fraction | None = None
    beta_1: Fraction | None = None
    beta_2: Fraction | None = None
    tau: Positive | None = None

    @model_validator(mode="after")
    def _only_what_it_has(self) -> Self:
        allowed = STRATEGY_OPTIONS[self.name]
        for option in ("proximal_mu", "learning_rate", "momentum", "beta_1", "beta_2", "tau"):
            if getattr(self, option) is not None and option not in allowed:
                takes = ", ".join(sorted(allowed)) or "no options"
                raise ValueError(f"{self.name} has no option {option!r}; it takes {takes}")
        return self


STRATEGY_OPTIONS: dict[StrategyName, frozenset[str]] = {
    StrategyName.FEDAVG: frozenset(),
    StrategyName.FEDPROX: frozenset({"proximal_mu"}),
    StrategyName.FEDAVGM: frozenset({"learning_rate", "momentum"}),
    StrategyName.FEDADAM: frozenset({"learning_rate", "beta_1", "beta_2", "tau"}),
    StrategyName.FEDYOGI: frozenset({"learning_rate", "beta_1", "beta_2", "tau"}),
    StrategyName.FEDADAGRAD: frozenset({"learning_rate", "tau"}),
}


class TrainingSection(Section):
    """One silo's training in one round: `epochs` over its data or `steps` of one batch, never both.

    `batch_size` is the global batch of the silo, shared among its workers. `class_weights` are per class of
    the target, in the order of its categories.
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=10_000_000)] = 32
    optimizer: Optimizer = Optimizer.SGD
    learning_rate: Positive = 0.01
    momentum: Fraction = 0.0
    weight_decay: NonNegative = 0.0
    gradient_clip: Positive | None = None
    class_weights: tuple[Positive, ...] = ()
    local_checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    max_update_norm: Positive | None = None

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.momentum and self.optimizer is not Optimizer.SGD:
            raise ValueError(f"momentum belongs to sgd, not to {self.optimizer}")
        return self


class TransportSection(Section):
    """`bf16` halves the bytes of weights and updates on their way; sums and the server's model stay float32."""

    precision: Precision = Precision.FP32


class EvaluationSection(Section):
    """`every = k`: silos measure the global model on their test data in every k-th round, and at the end."""

    every: Annotated[int, Field(ge=1)] = 1


class RunSpec(Section):
    """One federated training job. `hash` is what every party shows."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    task: TaskSection
    data: DataSection
    model: ModelSection = ModelSection()
    rounds: RoundsSection
    silos: SilosSection = SilosSection()
    strategy: StrategySection = StrategySection()
    training: TrainingSection
    transport: TransportSection = TransportSection()
    secure_aggregation: SecureAggregationSection = SecureAggregationSection()
    privacy: PrivacySection = PrivacySection()
    governance: GovernanceSection = GovernanceSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    stop: StopSection = StopSection()

    @model_validator(mode="after")
    def _nothing_of_single_silos(self) -> Self:
        """What needs single updates or single silos' figures does not go with sums alone."""
        secure = self.secure_aggregation
        if not secure.enabled:
            return self
        if self.stop.kl is not None:
            raise ValueError("[stop] kl compares single silos' scores, which secure aggregation hides")
        if self.silos.names and not secure.min_cohort <= len(self.silos.names) <= MAX_SILOS:
            raise ValueError(
                f"secure aggregation among {len(self.silos.names)} silos does not work: it takes at least "
                f"[secure_aggregation] min_cohort ({secure.min_cohort}) of them, and at most {MAX_SILOS}"
            )
        return self

    @model_validator(mode="after")
    def _weighed(self) -> Self:
        check_weights(self)
        return self

    @model_validator(mode="after")
    def _private(self) -> Self:
        check_private(self)
        return self

    def canonical(self) -> str:
        """The spec as canonical JSON, defaults written out."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return sha256_hex(self.canonical())
