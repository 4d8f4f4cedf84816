"""`fedplat client audit` at a real home: what it says, what it keeps, what the report makes of it."""

from __future__ import annotations

import json
import stat
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedplat.cli import load_commands
from fedplat.errors import FedplatError
from fedplat.report import AuditFacts
from fedplat_silo.audit import auditing
from fedplat_silo.audit.records import kept
from fedplat_silo.datasets import remember_datasets
from fedplat_silo.trainer.dp import training
from tests.support.specs import table
from tests.unit.audit.test_broken_variants import seed
from tests.unit.dp.test_broken_variants import halved
from tests.unit.ledger.scene import Scene

PRIVATE = """
batch_size = 8
[privacy]
mode = "record"
metrics = "none"
noise_multiplier = 1.2
delta = 1e-4
[strategy]
weighting = "uniform"
"""


def write_data(path: Path, num: int = 80, shift: int = 0) -> Path:
    rows = (f"{i},{30 + (i + shift) % 40},{'fm'[i % 2]},{['no', 'yes'][(i + shift) % 2]}\n" for i in range(num))
    path.write_text("pid,age,sex,ill\n" + "".join(rows))
    return path


class Later(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) + timedelta(hours=1)


def change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def silo(tmp_path: Path) -> Scene:
    """With a dataset, a study and a budget of which nothing was spent."""
    scene = Scene(tmp_path)
    scene.register("heart", patients=range(80))
    scene.budget(8)
    remember_datasets(scene.home.datasets, [f"heart={write_data(tmp_path / 'heart.csv')}"])
    declared = table("heart", rounds=4, patient="pid").replace('"numeric"', '"numeric"\ncenter = 50\nscale = 10')
    scaled = declared.replace("[task.options]\n", '[task.options]\nscaling = "declared"\n', 1)
    (tmp_path / "study.toml").write_text(scaled + PRIVATE)
    return scene


def call(silo: Scene, *arguments: str) -> Result:
    done = CliRunner().invoke(load_commands(), [*arguments, "--home", str(silo.folder)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def audit(silo: Scene, *more: str) -> Result:
    return call(silo, "client", "audit", "--dataset", "heart", "--spec", str(silo.folder / "study.toml"), *more)


def report(silo: Scene) -> str:
    return call(silo, "report", "privacy", "--dataset", "heart").stdout


def test_it_passes_spends_nothing_and_is_in_the_report(silo: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    seed(monkeypatch, 1)
    book = silo.files()
    assert "fedplat client audit" in report(silo)
    done = audit(silo)
    assert done.exit_code == 0
    assert "passed" in done.stdout
    assert "40 steps of the 40 planned" in done.stdout
    (found,) = kept(silo.home)
    assert (found.dataset, found.unit, found.sampling_rate, found.delta) == ("heart", "patient", 0.1, 1e-4)
    (path,) = (silo.home.path / "audits").iterdir()
    assert str(path) in done.stdout
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert silo.files() == book
    said = report(silo)
    assert "Audits so far: 1, of which 0 failed" in said
    assert "Attention: the audit" not in said
    plan = ("--plan", str(silo.folder / "study.toml"), "--units", "80")
    assert "itself was not audited" not in call(silo, "report", "privacy", *plan).stdout
    change(silo.folder / "study.toml", "count = 4", "count = 5")
    assert "itself was not audited" in call(silo, "report", "privacy", *plan).stdout


def test_a_failure_ends_with_status_1_and_is_on_page_one_until_the_plan_passes(
    silo: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(monkeypatch, 1)
    with monkeypatch.context() as broken:
        broken.setattr(training, "noised", halved)
        done = audit(silo)
        as_json = audit(silo, "--json", "--steps", "30")
    assert (done.exit_code, as_json.exit_code) == (1, 1)
    assert "FAILED" in done.stdout
    assert "fedplat client pause" in done.stdout
    facts = AuditFacts.model_validate_json(as_json.stdout)
    assert not facts.passed
    assert facts.num_steps == 30
    page = report(silo)
    assert page.index("Attention: the audit") < page.index("What is not protected")
    file = json.loads(call(silo, "report", "privacy", "--format", "json").stdout)
    assert file["report"]["empirical"]["audit"] == "failed"
    assert len(file["report"]["empirical"]["audits"]) == 2
    monkeypatch.setattr(auditing, "datetime", Later)
    assert audit(silo).exit_code == 0
    page = report(silo)
    assert "Attention: the audit" not in page
    assert "Audits so far: 3, of which 2 failed" in page


def test_what_it_finds_is_nothing_about_the_records(silo: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other patients, as many, and the same randomness: the same figures to the last bit."""
    both = []
    for shift in (0, 7):
        write_data(silo.folder / "heart.csv", shift=shift)
        seed(monkeypatch, 4)
        facts = json.loads(audit(silo, "--json").stdout)
        both.append({name: value for name, value in facts.items() if name != "made_at"})
    assert both[0] == both[1]


def test_what_cannot_be_audited_is_said(silo: Scene) -> None:
    study = silo.folder / "study.toml"
    with pytest.raises(FedplatError, match="asks for the dataset 'heart'"):
        call(silo, "client", "audit", "--dataset", "lung", "--spec", str(study))
    study.write_text(table("heart"))
    with pytest.raises(FedplatError, match="no differential privacy"):
        audit(silo)
    study.write_text(table("lung") + PRIVATE)
    with pytest.raises(FedplatError, match="has no dataset 'lung'"):
        call(silo, "client", "audit", "--spec", str(study))
    (silo.home.path / "audits").mkdir(mode=0o700)
    (silo.home.path / "audits" / "x.json").write_text("{}")
    with pytest.raises(FedplatError, match=r"x\.json cannot be read"):
        report(silo)
