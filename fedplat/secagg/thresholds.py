"""How many silos open a sum, and what that withstands (protocol, 4.7)."""

from __future__ import annotations


def threshold(num_silos: int, strong: bool) -> int:
    """t: how many silos must sign a cohort, and how many must answer to open its sum."""
    return 2 * num_silos // 3 + 1 if strong else num_silos // 2 + 1


def smallest_cohort(num_silos: int, strong: bool, min_cohort: int) -> int:
    """The fewest uploads whose sum may be opened."""
    return max(threshold(num_silos, strong), min_cohort)


def colluders_tolerated(num_silos: int, strong: bool, min_cohort: int) -> int:
    """How many silos may side with the server: two cohorts need 2t <= n + c signatures, and c must leave two inputs.

    Never below 0, also where the smallest cohort is larger than the number of silos.
    """
    apart = 2 * threshold(num_silos, strong) - num_silos - 1
    return max(0, min(apart, smallest_cohort(num_silos, strong, min_cohort) - 2))


def colluders_withstood(num_silos: int, strong: bool, min_cohort: int) -> int:
    """The same whomever of so many silos the server invites: it may choose few, the colluders among them."""
    sizes = range(max(2, min_cohort), num_silos + 1)
    return min((colluders_tolerated(size, strong, min_cohort) for size in sizes), default=0)


def dropouts_tolerated(num_silos: int, strong: bool, min_cohort: int) -> int:
    """How many silos may vanish before or after their upload. Negative: too few silos to begin."""
    return num_silos - smallest_cohort(num_silos, strong, min_cohort)
