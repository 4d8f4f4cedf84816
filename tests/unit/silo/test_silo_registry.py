"""Tasks by name: found, identified without being imported, refused if missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedplat.reasons import Code
from fedplat_silo.data.errors import Refused
from fedplat_silo.tasks import registry


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    info = tmp_path / "clinic-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clinic\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[fedplat.tasks]\nheart = clinic_heart.deep:Heart\n")
    package = tmp_path / "clinic_heart"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "deep.py").write_text("class Heart: ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_identity_is_of_all_python_files_and_imports_nothing(site: Path) -> None:
    assert {"add_constant", "heart", "tabular"} <= set(registry.installed())
    first = registry.identity("heart")
    assert (first.version, len(first.sha256)) == ("1.2", 64)
    (site / "notes.txt").write_text("not code")
    assert registry.identity("heart") == first
    (site / "deep.py").write_text("class Heart: pass")
    changed = registry.identity("heart")
    assert changed != first
    (site / "deep.py").rename(site / "deeper.py")
    assert registry.identity("heart") != changed
    assert "clinic_heart" not in sys.modules


def test_built_in_tasks_are_plugins_like_any_other() -> None:
    assert registry.load("tabular").__name__ == "Tabular"
    assert registry.identity("tabular") == registry.identity("add_constant")


def test_a_missing_task_is_refused() -> None:
    for ask in (registry.identity, registry.load):
        with pytest.raises(Refused) as refusal:
            ask("nothing")
        assert refusal.value.reason.code is Code.TASK_MISSING
        assert refusal.value.reason.words == {"task": "nothing"}
