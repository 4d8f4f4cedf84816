"""From many silos' updates to one mean update. Plain sums; secure ones end in the same result."""

from __future__ import annotations

from fedplat_server.aggregation.plain import Update, UpdateError, WeightedMean

__all__ = ["Update", "UpdateError", "WeightedMean"]
