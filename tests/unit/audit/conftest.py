"""Figures from a coarser grid, ten times faster."""

from __future__ import annotations

import pytest

from tests.unit.privacy.conftest import coarse

__all__ = ["coarse"]


@pytest.fixture(autouse=True)
def _quick(coarse: None) -> None:
    """Everywhere here."""
