"""What keeps data from being trained on, said on a screen: in words that hold no patient's value, which the log has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedplat.errors import DataError
from fedplat_silo.data.errors import Refused
from fedplat_silo.trainer.errors import TrainingFailed

if TYPE_CHECKING:
    from fedplat.reasons import Reason


@contextmanager
def in_words(log: Path, *, tells_no_data: bool = False) -> Iterator[None]:
    """A DataError without what may hold a patient's value, which goes to the log; `tells_no_data`: it never does."""
    try:
        yield
    except Refused as error:
        _note(log, error.message)
        raise _problem(error.reason, log, error.message if tells_no_data else "") from None
    except TrainingFailed as failure:
        raise _problem(failure.reason, log) from None


def _problem(reason: Reason, log: Path, detail: str = "") -> DataError:
    return DataError(detail or str(reason), hint=reason.hint.replace("the silo's log", str(log)))


def _note(log: Path, text: str) -> None:
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
        file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
