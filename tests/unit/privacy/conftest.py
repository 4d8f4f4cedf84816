"""A broken variant must not answer from what the true one has cached, nor leave anything behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedplat.privacy import accountant, attacks


def forget() -> None:
    for cache in (accountant._epsilon, accountant._pld, accountant._composed, accountant._one_step, attacks._profile):
        cache.cache_clear()


@pytest.fixture
def cold_cache() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture(scope="module")
def coarse() -> Iterator[None]:
    """Ten times faster; what holds of the figures holds of these too, for they are upper bounds as well."""
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accountant, "_INTERVAL", 1e-3)
        yield
    forget()
