"""What the silo's process says: short lines for people on the console, full detail in a log file of its own."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_LOG_BYTES = 5_000_000
NUM_OLD_LOGS = 5
PACKAGE = "fedplat_silo"


def set_up_logging(path: Path, *, verbose: bool) -> None:
    """INFO of ours to the console (`verbose`: everything), and all of it to `path` (0600, rotating)."""
    detail = _PrivateLog(path, maxBytes=MAX_LOG_BYTES, backupCount=NUM_OLD_LOGS, encoding="utf-8")
    detail.setFormatter(_Utc("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    people = logging.StreamHandler(sys.stdout)
    people.setFormatter(_Line())
    people.setLevel(logging.DEBUG if verbose else logging.INFO)
    ours = logging.getLogger(PACKAGE)
    ours.setLevel(logging.DEBUG)
    ours.handlers = [people]
    logging.getLogger().handlers = [detail]
    silence_flower()


def silence_flower() -> None:
    """Take away the console handlers that importing flwr adds; its warnings go to the log file."""
    for name in ("flwr", "httpx", "httpcore"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def printable(text: str, limit: int = 300) -> str:
    """Text from the other side, without what could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:limit])


class _PrivateLog(RotatingFileHandler):
    def _open(self) -> io.TextIOWrapper:
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return open(fd, "a", encoding=self.encoding)


class _Utc(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class _Line(logging.Formatter):
    """No traceback: that may hold a patient's value, and the log file has it."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))}  {record.getMessage()}"
