"""When a run ends before its last round. Pure: it looks at figures and numbers, and says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedplat.metrics import MetricSums
from fedplat.spec.model import Figure, StopSection

Figures = Mapping[str, float]


@dataclass(frozen=True)
class StopReason:
    """`code` for programs, `text` for people."""

    code: str
    text: str


def find_reason(section: StopSection, history: Sequence[tuple[int, Figures]], elapsed_s: float) -> StopReason | None:
    """`history`: (round, figures of its weights on the federation's test records), in order of rounds."""
    values = [(number, figures[section.metric]) for number, figures in history if section.metric in figures]
    return (
        _target(section, values)
        or _patience(section, values)
        or _divergence(section, history)
        or _kl(section, history)
        or _wall_clock(section, elapsed_s)
    )


def is_better(figure: Figure, value: float, best: float, min_gain: float = 0.0) -> bool:
    """Whether a value beats the best so far by more than `min_gain`."""
    return value < best - min_gain if figure.less_is_better else value > best + min_gain


def _target(section: StopSection, values: Sequence[tuple[int, float]]) -> StopReason | None:
    if section.target is None or not values:
        return None
    number, value = values[-1]
    reached = value <= section.target if section.metric.less_is_better else value >= section.target
    if not reached:
        return None
    return StopReason(
        "target", f"{section.metric} of round {number} is {value:.4g}, the target was {section.target:.4g}"
    )


def _patience(section: StopSection, values: Sequence[tuple[int, float]]) -> StopReason | None:
    if section.patience is None or not values:
        return None
    best_at, best, since = values[0][0], values[0][1], 0
    for number, value in values[1:]:
        if is_better(section.metric, value, best, section.min_gain):
            best_at, best, since = number, value, 0
        else:
            since += 1
    if since < section.patience:
        return None
    return StopReason(
        "patience", f"{section.metric} has not improved in {since} evaluations (best {best:.4g}, round {best_at})"
    )


def _divergence(section: StopSection, history: Sequence[tuple[int, Figures]]) -> StopReason | None:
    value = history[-1][1].get("divergence") if history else None
    if section.divergence is None or value is None or value >= section.divergence:
        return None
    return StopReason("divergence", f"the silos' updates cancel out: |mean| / mean |u| is {value:.3g}")


def _kl(section: StopSection, history: Sequence[tuple[int, Figures]]) -> StopReason | None:
    value = history[-1][1].get("kl_divergence") if history else None
    if section.kl is None or value is None or value <= section.kl:
        return None
    return StopReason("kl", f"a silo's scores have a KL divergence of {value:.3g} from the federation's")


def _wall_clock(section: StopSection, elapsed_s: float) -> StopReason | None:
    if section.wall_clock_s is None or elapsed_s < section.wall_clock_s:
        return None
    return StopReason("wall_clock", f"the run has taken {elapsed_s:.0f} s, its limit is {section.wall_clock_s:.0f} s")


def kl_divergence(parts: Sequence[MetricSums], num_bins: int = 16) -> float | None:
    """The largest KL divergence, in nats, of a silo's histogram of predicted scores from the sum of all silos'.

    Both histograms get one record a bin more (so the figure is finite), over `num_bins` bins. None without scores.
    """
    tables = [_scores(part, num_bins) for part in parts if "positive_scores" in part.counts and part.num_examples]
    if len(tables) < 2:
        return None
    total = np.sum(tables, axis=0) + 1.0
    reference = total / total.sum()
    shares = [(t + 1.0) / (t + 1.0).sum() for t in tables]
    return max(float((p * np.log(p / reference)).sum()) for p in shares)


def _scores(part: MetricSums, num_bins: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    fine = np.asarray(part.counts["positive_scores"], dtype=np.float64) + part.counts["negative_scores"]
    return np.asarray([chunk.sum() for chunk in np.array_split(fine, num_bins)])
