"""The silo: policy, data, trainer. Everything that touches a patient's record is in this package."""

from __future__ import annotations

import os

# Here, for this runs before anything in the package can import Flower, which reads it when it is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
