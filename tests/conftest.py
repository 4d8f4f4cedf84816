"""Hypothesis searches anew on a developer's machine and repeats itself in CI, where a red build must mean a change."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for what holds Unix sockets, whose paths have at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="fp-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
