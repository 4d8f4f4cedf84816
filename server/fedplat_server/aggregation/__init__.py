"""From many silos' updates to one mean update: of updates that are seen, or of their masked sum."""

from __future__ import annotations

from fedplat_server.aggregation.masked import MaskedMean
from fedplat_server.aggregation.plain import Update, UpdateError, WeightedMean

__all__ = ["MaskedMean", "Update", "UpdateError", "WeightedMean"]
