from __future__ import annotations

from pathlib import Path

import pytest

from fedplat_silo.ledger import overview, receipts, rules
from tests.unit.ledger.scene import Scene, quick_epsilon


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rules, receipts, overview):
        monkeypatch.setattr(module, "epsilon", quick_epsilon)


@pytest.fixture
def scene(tmp_path: Path, quick: None) -> Scene:
    return Scene(tmp_path)
