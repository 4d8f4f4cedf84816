from __future__ import annotations

from pathlib import Path

import pytest

from fedplat.secagg.thresholds import (
    colluders_tolerated,
    colluders_withstood,
    dropouts_tolerated,
    smallest_cohort,
    threshold,
)

# n, t, colluders, the same when strong, dropouts in both
TABLE = [
    (3, 2, 0, 3, 1, 0, 0),
    (4, 3, 1, 3, 1, 1, 1),
    (5, 3, 0, 4, 2, 2, 1),
    (7, 4, 0, 5, 2, 3, 2),
    (10, 6, 1, 7, 3, 4, 3),
    (16, 9, 1, 11, 5, 7, 5),
    (64, 33, 1, 43, 21, 31, 21),
]


@pytest.mark.parametrize(("n", "t", "c", "strong_t", "strong_c", "drops", "strong_drops"), TABLE)
def test_the_table_of_the_protocol(
    n: int, t: int, c: int, strong_t: int, strong_c: int, drops: int, strong_drops: int
) -> None:
    assert (threshold(n, False), threshold(n, True)) == (t, strong_t)
    assert (colluders_tolerated(n, False, 3), colluders_tolerated(n, True, 3)) == (c, strong_c)
    assert (dropouts_tolerated(n, False, 3), dropouts_tolerated(n, True, 3)) == (drops, strong_drops)


def test_whomever_the_server_invites() -> None:
    """The threat model has it as (min_cohort - 1) / 3, rounded up; the first such number must be among the sizes."""
    for min_cohort in range(3, 40):
        for n in range(min_cohort + 2, 65):
            assert colluders_withstood(n, False, min_cohort) == 0
            assert colluders_withstood(n, True, min_cohort) == -(-(min_cohort - 1) // 3)
    assert colluders_withstood(2, True, 3) == 0


def test_the_threat_model_says_the_same() -> None:
    text = (Path(__file__).parents[3] / "docs" / "threat-model.md").read_text()
    for n, t, c, strong_t, strong_c, drops, strong_drops in TABLE:
        assert f"| {n} | {t} / {strong_t} | {c} / {strong_c} | {drops} / {strong_drops} |" in text


@pytest.mark.parametrize("strong", [False, True])
def test_what_the_numbers_stand_for(strong: bool) -> None:
    for n in range(2, 65):
        t, c = threshold(n, strong), colluders_tolerated(n, strong, 2)
        assert 2 * t > n + c
        assert t <= n
        assert smallest_cohort(n, strong, 2) >= c + 2
        assert dropouts_tolerated(n, strong, n + 1) == -1
