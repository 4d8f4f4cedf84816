"""Metrics travel as sums that add up, so that the federation's figures are exact over all silos' records.

A silo sends counts and totals; the server adds them and only then computes accuracy, precision, recall, F1, AUROC.
Averages of averages never occur. AUROC is computed from score histograms, within a bound that is reported with it:
pairs of a positive and a negative record that share a bin count one half, so the error is at most half their share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from fedplat.errors import WireError

NUM_SCORE_BINS = 1024
MAX_CLASSES_WITH_CONFUSION = 1000
RATES = frozenset({"accuracy", "precision", "recall", "f1"})
REGRESSION = frozenset({"absolute_error", "squared_error", "target", "target_squared"})
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Count = Annotated[int, Field(gt=-(2**53), lt=2**53)]
Total = Annotated[float, Field(ge=-1e150, le=1e150)]  # so that sums over silos, and their squares, stay finite


class MetricSums(BaseModel):
    """Integer counts and float totals by name; two of the same shape can be added.

    Classification: counts `confusion` (C x C, row = true class, flat; `correct` alone for more than 1000 classes)
    and, for two classes, `positive_scores` and `negative_scores` (histograms of the positive class's score over
    [0, 1]). Regression: totals `absolute_error`, `squared_error`, `target`, `target_squared`. Both: counts
    `examples` and totals `loss`. What is negative, not finite or contradicts itself is refused.

    `noised`: all but `examples` has noise of differential privacy in it, so a count of answers may be negative, and
    more than there are examples. Only sums that stay as they are have no bias; so they are left like that.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    counts: dict[Name, list[Count]] = Field(default_factory=dict, max_length=32)
    totals: dict[Name, Total] = Field(default_factory=dict, max_length=32)
    noised: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.counts.get("examples", [])) != 1:
            raise ValueError("metric sums need a count of examples")
        exact = [self.counts["examples"]] if self.noised else self.counts.values()
        if any(min(counts, default=0) < 0 for counts in exact):
            raise ValueError("a count is negative")
        confusion = self.counts.get("confusion")
        if confusion is not None:
            square = len(confusion) >= 4 and math.isqrt(len(confusion)) ** 2 == len(confusion)
            if not square or sum(confusion) != self.num_examples:
                raise ValueError("the confusion matrix does not fit the examples")
        if self.counts.keys() & {"positive_scores", "negative_scores"}:
            self._check_scores(confusion)
        correct = self.counts.get("correct")
        if correct is not None and not (len(correct) == 1 and (self.noised or correct[0] <= self.num_examples)):
            raise ValueError("more correct answers than examples")
        if self.totals.keys() & REGRESSION:
            squares = REGRESSION - {"target"}
            if not self.totals.keys() >= REGRESSION or min(self.totals[name] for name in squares) < 0:
                raise ValueError("the totals of a regression are incomplete, or negative")
        return self

    def _check_scores(self, confusion: list[int] | None) -> None:
        for name, row in (("negative_scores", 0), ("positive_scores", 1)):
            scores = self.counts.get(name, [])
            if confusion is None or len(confusion) != 4 or len(scores) != NUM_SCORE_BINS:
                raise ValueError("score histograms belong in pairs to a two-class confusion matrix")
            if sum(scores) != sum(confusion[2 * row : 2 * row + 2]):
                raise ValueError(f"{name} do not fit the confusion matrix")

    @property
    def num_examples(self) -> int:
        """Over how many records these sums run."""
        return self.counts["examples"][0]

    @classmethod
    def of_classes(
        cls, scores: npt.NDArray[np.floating], targets: npt.NDArray[np.integer], losses: npt.NDArray[np.floating]
    ) -> Self:
        """From probabilities (n x C; for two classes also n, of the positive class), classes (n), losses (n)."""
        table = np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores
        num_classes = table.shape[1]
        predicted = table.argmax(axis=1) if scores.ndim == 2 else (scores >= 0.5).astype(np.int64)
        counts = {"examples": [len(targets)]}
        if num_classes > MAX_CLASSES_WITH_CONFUSION:
            counts["correct"] = [int((predicted == targets).sum())]
        else:
            cells = targets.astype(np.int64) * num_classes + predicted
            counts["confusion"] = np.bincount(cells, minlength=num_classes**2).tolist()
        if num_classes == 2:
            bins = np.minimum((np.nan_to_num(table[:, 1]) * NUM_SCORE_BINS).astype(np.int64), NUM_SCORE_BINS - 1)
            for name, label in (("positive_scores", 1), ("negative_scores", 0)):
                counts[name] = np.bincount(bins[targets == label], minlength=NUM_SCORE_BINS).tolist()
        return cls(counts=counts, totals={"loss": float(losses.sum(dtype=np.float64))})

    @classmethod
    def of_values(
        cls,
        predicted: npt.NDArray[np.floating],
        targets: npt.NDArray[np.floating],
        losses: npt.NDArray[np.floating],
    ) -> Self:
        """From predictions (n), targets (n), both in the target's own unit, and losses (n)."""
        p, t = predicted.astype(np.float64), targets.astype(np.float64)
        totals = {
            "loss": float(losses.sum(dtype=np.float64)),
            "absolute_error": float(np.abs(p - t).sum()),
            "squared_error": float(((p - t) ** 2).sum()),
            "target": float(t.sum()),
            "target_squared": float((t**2).sum()),
        }
        return cls(counts={"examples": [len(t)]}, totals=totals)

    def __add__(self, other: Self) -> Self:
        if self.shape != other.shape:
            raise WireError("metric sums of different tasks cannot be added")
        counts = {k: [a + b for a, b in zip(v, other.counts[k], strict=True)] for k, v in self.counts.items()}
        totals = {k: v + other.totals[k] for k, v in self.totals.items()}
        return self.model_copy(update={"counts": counts, "totals": totals})

    @property
    def shape(self) -> tuple[object, ...]:
        """What must be equal for two sums to be added: the names and lengths of counts, the names of totals, and
        whether they are noised."""
        return (*sorted((k, len(v)) for k, v in self.counts.items()), *sorted(self.totals), self.noised)


def add_sums(parts: Iterable[MetricSums]) -> MetricSums:
    """The sum, in the order given. WireError if there is nothing to add, or the shapes differ."""
    iterator = iter(parts)
    total = next(iterator, None)
    if total is None:
        raise WireError("no metric sums to add")
    for part in iterator:
        total = total + part
    return total


def summarise(sums: MetricSums) -> dict[str, float]:
    """Loss and what the sums allow: accuracy, precision, recall, f1, auroc and auroc_bound; or mae, rmse, r2.

    For more than two classes precision, recall and F1 are macro averages over the classes that occur (in the target
    or in the prediction). What is undefined (no records, one class) is left out. Rates of noised sums are cut off at 0
    and 1, which brings each of them nearer to the truth.
    """
    n = sums.num_examples
    if not n:
        return {}
    figures = {"loss": sums.totals["loss"] / n} if "loss" in sums.totals else {}
    if "confusion" in sums.counts:
        figures |= _classification(np.asarray(sums.counts["confusion"], dtype=np.int64))
        if "positive_scores" in sums.counts:
            figures |= _auroc(sums.counts["positive_scores"], sums.counts["negative_scores"])
    elif "correct" in sums.counts:
        figures["accuracy"] = sums.counts["correct"][0] / n
    elif "squared_error" in sums.totals:
        figures |= _regression(sums)
    if sums.noised:
        figures |= {name: min(1.0, max(0.0, figures[name])) for name in RATES & figures.keys()}
    return figures


def _classification(flat: npt.NDArray[np.int64]) -> dict[str, float]:
    classes = math.isqrt(flat.size)
    confusion = flat.reshape(classes, classes)
    true, predicted, hits = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    if classes == 2:
        true, predicted, hits = true[1:], predicted[1:], hits[1:]
    occurs = (true + predicted) > 0
    ratios = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, true),
        "f1": _ratio(2 * hits, true + predicted),
    }
    figures = {"accuracy": float(confusion.trace() / confusion.sum())}
    return figures | {k: float(v[occurs].mean()) for k, v in ratios.items() if occurs.any()}


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def _auroc(positive: list[int], negative: list[int]) -> dict[str, float]:
    p, n = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    pairs = float(p.sum() * n.sum())
    if not pairs:
        return {}
    below = np.concatenate([[0.0], np.cumsum(n)[:-1]])
    tied = float((p * n).sum())
    return {"auroc": float((p * below).sum() + tied / 2) / pairs, "auroc_bound": tied / 2 / pairs}


def _regression(sums: MetricSums) -> dict[str, float]:
    n, totals = sums.num_examples, sums.totals
    spread = totals["target_squared"] - totals["target"] ** 2 / n
    figures = {"mae": totals["absolute_error"] / n, "rmse": math.sqrt(totals["squared_error"] / n)}
    known = spread > max(1e-12 * totals["target_squared"], 1e-150)  # below that, the difference is rounding
    return figures | ({"r2": 1 - totals["squared_error"] / spread} if known else {})
