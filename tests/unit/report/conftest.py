from __future__ import annotations

import pytest

from fedplat.report import ReportFile
from tests.unit.report.scene import signed


@pytest.fixture
def file() -> ReportFile:
    return signed()
