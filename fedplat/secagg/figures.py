"""What rides behind the update in a masked vector: a silo's weight, its update's norm and its metric sums.

All of it is exact: counts as they are, real numbers in fixed point over several coordinates, so that no bound has to be
declared for a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from fedplat.errors import WireError
from fedplat.metrics import MetricSums
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.fixedpoint import Segment, VectorFormat, counts_to_words, words_to_counts
from fedplat.secagg.keys import expand
from fedplat.secagg.prg import Keystream, Words

_LIMB_BITS = 24  # the largest that fits a coordinate with 64 silos
_NUM_LIMBS = 6
_FRACTION_BITS = 48
_OFFSET = 1 << (_LIMB_BITS * _NUM_LIMBS - 1)
_SMALLEST_ROOM = 4


@dataclass(frozen=True)
class Figures:
    """Of one silo, or of all together.

    `weight`: how much the update counts, in parts of the format's limit. `num_clipped`: coordinates that were cut
    off. `norm`: weight times Euclidean norm. `evaluated`, `trained`: metric sums, None if none were given, and how many
    silos gave them.
    """

    weight: int = 0
    num_clipped: int = 0
    norm: float = 0.0
    evaluated: MetricSums | None = None
    trained: MetricSums | None = None
    num_evaluated: int = 0
    num_trained: int = 0


@dataclass(frozen=True)
class FiguresFormat:
    """How figures lie in the vector. `empty`: the task's metric sums over no records, which give names and lengths.
    Counts of noised sums have a sign; as no count is above M, the sum of all silos' still fits."""

    empty: MetricSums

    @property
    def length(self) -> int:
        """Coordinates."""
        return 4 + _NUM_LIMBS + 2 * self._num_words

    @property
    def _num_words(self) -> int:
        return self._num_counts + _NUM_LIMBS * len(self.empty.totals)

    def encode(self, figures: Figures, limit: int, hiding_key: bytes) -> Words:
        """One silo's figures. Sums that it does not give are noise, and hide those of the others: else the sum over
        the few that give theirs is theirs. Raises RefusedError if they do not fit, or are of another shape."""
        given = figures.evaluated, figures.trained
        counts = [figures.weight, min(figures.num_clipped, limit), *(int(sums is not None) for sums in given)]
        counts += _to_limbs(figures.norm)
        words = [counts_to_words(counts, limit)]
        for place, sums in enumerate(given):
            if sums is None:
                noise = Keystream(expand(hiding_key, "hidden sums", place)).read(4 * self._num_words)
                words.append(np.frombuffer(noise, "<u4"))
            else:
                words.append(counts_to_words(self._flatten(sums), limit, signed=self.empty.noised))
        return np.concatenate(words)

    def decode(self, total: Words, num_silos: int) -> Figures:
        """The figures of `num_silos` silos together. Raises WireError if they make no sense."""
        counts = iter(words_to_counts(total[: self.length - 2 * self._num_words]))
        weight, num_clipped, num_evaluated, num_trained = (next(counts) for _ in range(4))
        if not weight:
            raise WireError("the silos' summed weight is zero")
        norm = _from_limbs(counts, num_silos)
        places = (total[len(total) - 2 * self._num_words :][: self._num_words], total[len(total) - self._num_words :])
        evaluated, trained = (
            self._unflatten(iter(words_to_counts(words, signed=self.empty.noised)), num_silos)
            if given == num_silos
            else None
            for words, given in zip(places, (num_evaluated, num_trained), strict=True)
        )
        return Figures(
            weight,
            num_clipped,
            norm,
            evaluated,
            trained,
            num_evaluated,
            num_trained,
        )

    @property
    def _num_counts(self) -> int:
        return sum(map(len, self.empty.counts.values()))

    def _flatten(self, sums: MetricSums) -> list[int]:
        if sums.shape != self.empty.shape:
            raise RefusedError(Refusal.FIGURES_CHANGED)
        counts = [count for name in sorted(sums.counts) for count in sums.counts[name]]
        return counts + [limb for name in sorted(sums.totals) for limb in _to_limbs(sums.totals[name])]

    def _unflatten(self, flat: Iterator[int], num_silos: int) -> MetricSums:
        names = sorted(self.empty.counts)
        counts = {name: [next(flat) for _ in self.empty.counts[name]] for name in names}
        totals = {name: _from_limbs(flat, num_silos) for name in sorted(self.empty.totals)}
        try:
            return MetricSums(counts=counts, totals=totals, noised=self.empty.noised)
        except ValidationError:
            raise WireError("the silos' summed figures contradict each other") from None


def vector_format(num_silos: int, size: int, clip_range: float, figures: FiguresFormat) -> VectorFormat:
    """An update of `size` coordinates (none, if only figures travel) and the figures, for a roster of `num_silos`."""
    update = (Segment(size, clip_range),) if size else ()
    return VectorFormat(room_for(num_silos), (*update, Segment(figures.length, None)))


def room_for(num_silos: int) -> int:
    """n_max for a roster: a power of two, so that a silo that comes or goes seldom changes how numbers are rounded."""
    return max(_SMALLEST_ROOM, 1 << (num_silos - 1).bit_length())


def part_of(limit: int, weight: float, max_weight: float) -> int:
    """A silo's weight in parts of the limit. Raises RefusedError if it is above the largest that is allowed."""
    if not 0 < weight <= max_weight:
        raise RefusedError(Refusal.WEIGHT_TOO_LARGE)
    return max(1, math.floor(limit * (weight / max_weight)))


def _to_limbs(value: float) -> list[int]:
    if not abs(value) < 2.0 ** (_LIMB_BITS * _NUM_LIMBS - 2 - _FRACTION_BITS):
        raise RefusedError(Refusal.COUNT_TOO_LARGE)
    number = round(value * 2.0**_FRACTION_BITS) + _OFFSET
    return [number >> (_LIMB_BITS * place) & ((1 << _LIMB_BITS) - 1) for place in range(_NUM_LIMBS)]


def _from_limbs(counts: Iterator[int], num_silos: int) -> float:
    limbs: Sequence[int] = [next(counts) for _ in range(_NUM_LIMBS)]
    number = sum(limb << (_LIMB_BITS * place) for place, limb in enumerate(limbs))
    return (number - num_silos * _OFFSET) / (1 << _FRACTION_BITS)
