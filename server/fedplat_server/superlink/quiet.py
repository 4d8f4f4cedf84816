"""Flower without telemetry and without its own console output. Imported before anything of Flower."""

from __future__ import annotations

import logging
import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")


def silence_flower() -> None:
    """Take away the handlers that importing flwr adds; its warnings go to our log, its INFO lines nowhere."""
    logger = logging.getLogger("flwr")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = True
