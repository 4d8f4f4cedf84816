"""The demo as a visitor sees it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fedplat.demo import BUDGET, EPSILON, HOSPITALS
from tests.support.federation import FEDPLAT


@pytest.mark.slow
def test_it_ends_with_epsilon_per_hospital_and_a_report_that_stays(tmp_path: Path) -> None:
    command = [*FEDPLAT, "demo", "--reports", str(tmp_path / "reports")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    found = {
        name: (float(spent), float(budget))
        for name, spent, budget in re.findall(r"^  (\S+) +epsilon (\S+) of (\S+)$", done.stdout, re.MULTILINE)
    }
    assert found.keys() == set(HOSPITALS)
    assert all(0 < spent <= EPSILON and budget == BUDGET for spent, budget in found.values()), found
    for name in HOSPITALS:
        assert f"{name}: refused: its dataset has a privacy budget" in done.stdout
    accuracy = re.search(r"^  federation \(private\) +(\S+)", done.stdout, re.MULTILINE)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.9
    report = tmp_path / "reports" / f"{HOSPITALS[0]}.html"
    assert f"  {report} " in done.stdout
    assert subprocess.run([*FEDPLAT, "report", "verify", str(report)], check=False).returncode == 0
    specs = [Path(found) for found in re.findall(r"^\$ fedplat run submit (\S+)", done.stdout, re.MULTILINE)]
    assert len(specs) == 2
    assert not any(spec.parent.exists() for spec in specs), "everything else is gone"
