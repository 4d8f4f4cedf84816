"""Options of the built-in `tabular` task. In the core, so that a spec is checked where it is written."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from fedplat.spec.base import PLAIN, Section

# A cell that holds no value, white space and case apart; the same at every silo.
MISSING_CELLS = frozenset({"", "?", "na", "n/a", "nan", "null"})

Column = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PLAIN)]
Category = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Scale = Annotated[float, Field(gt=0)]


class Numeric(Section):
    """A number: scaled by (x - center) / scale, or by `range` to [-1, 1] with what lies outside clipped.

    `missing`: `refuse`, or `center` (the middle of the range), or a constant in the column's own unit.
    """

    column: Column
    kind: Literal["numeric"] = "numeric"
    center: float = 0.0
    scale: Scale = 1.0
    range: tuple[float, float] | None = None
    missing: Literal["refuse", "center"] | float = "refuse"

    @model_validator(mode="after")
    def _one_scaling(self) -> Self:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"column {self.column!r}: the range must go upwards")
        if self.range is not None and (self.center, self.scale) != (0.0, 1.0):
            raise ValueError(f"column {self.column!r}: give a range, or center and scale, not both")
        return self

    @property
    def center_scale(self) -> tuple[float, float]:
        """(center, scale), from the range where one is given."""
        if self.range is None:
            return self.center, self.scale
        low, high = self.range
        return (low + high) / 2, (high - low) / 2


class Categorical(Section):
    """One of the declared categories, one-hot; `drop_first` leaves the first out.

    `missing`: `refuse`, or `zeros` (no category is set).
    """

    column: Column
    kind: Literal["categorical"]
    categories: Annotated[tuple[Category, ...], Field(min_length=2, max_length=10_000)]
    drop_first: bool = False
    missing: Literal["refuse", "zeros"] = "refuse"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"column {self.column!r}: a category is listed twice")
        return self


class Target(Section):
    """What is predicted. Two categories: binary, the second is the positive one; none: regression."""

    column: Column
    categories: tuple[Category, ...] = ()
    center: float = 0.0
    scale: Scale = 1.0

    @model_validator(mode="after")
    def _classes(self) -> Self:
        if len(self.categories) == 1 or len(set(self.categories)) != len(self.categories):
            raise ValueError(f"target {self.column!r}: give two or more distinct categories, or none")
        return self

    @property
    def num_classes(self) -> int:
        """0 for regression."""
        return len(self.categories)


Feature = Annotated[Numeric | Categorical, Field(discriminator="kind")]


class TabularOptions(Section):
    """A table: its columns, and a logistic (linear) model or an MLP over them.

    `scaling = "declared"` uses the constants of the schema. `local` standardises numeric columns by each silo's
    own training data (mean and standard deviation never leave it; not available under differential privacy).
    """

    model: Literal["logistic", "mlp"] = "logistic"
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = ()
    scaling: Literal["declared", "local"] = "declared"
    patient: Column | None = None
    target: Target
    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=100_000)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        [(column, roles)] = Counter(self.columns).most_common(1)
        if roles > 1:
            raise ValueError(f"column {column!r} has two roles")
        if (self.model == "mlp") != bool(self.hidden):
            raise ValueError("an mlp needs hidden = [sizes], a logistic model has none")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that the task reads."""
        patient = (self.patient,) if self.patient else ()
        return (*(f.column for f in self.features), self.target.column, *patient)
