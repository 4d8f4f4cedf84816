"""A run that this silo could not take part in, for one reason at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedplat.doctor import Level, Subject
from fedplat.home import SiloHome
from fedplat_silo.doctor.rehearsal import Rehearsal
from fedplat_silo.ledger import begin_book, call_the_roll
from tests.unit.doctor.scene import PRIVATE, enrolled, expect, line, patients, silo, study, write_patients

Rows = list[tuple[object, ...]]

NORM_TASK = """
from torch import nn
from fedplat_silo.tasks.tabular import Tabular

class Norm(Tabular):
    def build_model(self):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
"""


@pytest.fixture
def home(tmp_path: Path) -> SiloHome:
    return enrolled(tmp_path)


def look(home: SiloHome, rows: Rows | None = None, **spec: str) -> Subject:
    """A silo with these patients, asked for that run."""
    data = write_patients(home.root / "heart.csv", patients() if rows is None else rows)
    return silo(home, spec=study(home.root / "study.toml", **spec), data=(f"heart={data}",))


def replaced(column: int, value: object) -> Rows:
    """Healthy data, but for a value in the tenth record."""
    rows = patients()
    rows[10] = tuple(value if place == column else cell for place, cell in enumerate(rows[10]))
    return rows


def test_all_is_well(home: SiloHome) -> None:
    found = look(home, more=PRIVATE)
    for check in ("spec", "run policy", "task", "data", "model", "budget"):
        expect(line(found, check), Level.OK)
    assert "of 23 patients" in line(found, "data").found
    assert "epsilon 8.000 at delta 0.001" in line(found, "budget").found


def test_a_spec_that_is_wrong(home: SiloHome) -> None:
    found = look(home, training="epoch = 1")
    expect(line(found, "spec"), Level.FAILED, "training.epoch", "run init")
    expect(line(found, "data"), Level.SKIPPED, "'spec' has failed")


def test_a_run_for_others(home: SiloHome) -> None:
    expect(line(look(home, more='[silos]\nnames = ["b", "c"]'), "spec"), Level.FAILED, "not for hospital-a")


def test_a_run_that_the_policy_refuses(home: SiloHome) -> None:
    home.policy.write_text("require_privacy = true\n")
    expect(line(look(home), "run policy"), Level.FAILED, "require_privacy", "policy.toml")


def test_a_task_that_is_not_installed(home: SiloHome) -> None:
    found = look(home)
    spec = home.root / "study.toml"
    spec.write_text(spec.read_text().replace('name = "tabular"', 'name = "imaging"'))
    expect(line(found, "task"), Level.FAILED, "'imaging' is not installed", "install the package")


def test_a_dataset_that_this_silo_does_not_have(home: SiloHome) -> None:
    spec = study(home.root / "study.toml")
    expect(line(silo(home, spec=spec), "data"), Level.FAILED, "has no dataset 'heart'", "--data heart=PATH")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (replaced(1, "seventy"), "column 'age' holds something that is not a finite number"),
        (replaced(1, ""), "column 'age' has a missing value"),
        (replaced(2, "x"), "column 'sex' holds a category"),
        (replaced(3, "perhaps"), "the target 'ill' holds a class"),
        (replaced(0, ""), "column 'pid' has a missing value"),
        ([], "has no records in the training set"),
    ],
)
def test_data_that_do_not_fit(home: SiloHome, rows: Rows, words: str) -> None:
    found = line(look(home, rows), "data")
    expect(found, Level.FAILED, words, "doctor.log names the line" if rows else "test_share")
    log = home.path / "doctor.log"
    assert "heart.csv:12" in log.read_text() or not rows
    assert log.stat().st_mode & 0o077 == 0
    for value in ("seventy", "perhaps"):
        assert value not in f"{found}", "what may be a patient's stays in the log"


def test_a_column_that_is_missing(home: SiloHome) -> None:
    found = look(home)
    data = home.root / "heart.csv"
    data.write_text(data.read_text().replace("age", "years", 1))
    expect(line(found, "data"), Level.FAILED, "no column 'age'", "header")


def test_one_class_only(home: SiloHome) -> None:
    rows: Rows = [(pid, age, sex, "no") for pid, age, sex, _ in patients()]
    expect(line(look(home, rows), "data"), Level.WARNING, "all of one class of 'ill'")


def test_a_model_that_cannot_be_trained_privately(home: SiloHome, monkeypatch: pytest.MonkeyPatch) -> None:
    site = home.root / "site"
    (site / "norm_task-1.0.dist-info").mkdir(parents=True)
    (site / "norm_task.py").write_text(NORM_TASK)
    (site / "norm_task-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: norm-task\nVersion: 1.0\n")
    (site / "norm_task-1.0.dist-info" / "entry_points.txt").write_text("[fedplat.tasks]\nnorm = norm_task:Norm\n")
    monkeypatch.syspath_prepend(str(site))
    for private, level in ((PRIVATE, Level.FAILED), ("", Level.OK)):
        found = look(home, more=private)
        spec = home.root / "study.toml"
        spec.write_text(spec.read_text().replace('name = "tabular"', 'name = "norm"'))
        expect(line(found, "model"), level)
        assert ("BatchNorm1d" in line(found, "model").found) == bool(private)


def test_parameters_in_no_group(home: SiloHome) -> None:
    found = look(home, more='[model]\nshared = ["encoder.*"]')
    expect(line(found, "model"), Level.FAILED, "encoder.*")


def set_budget(home: SiloHome, epsilon: float) -> None:
    write_patients(home.root / "heart.csv", patients())
    book = begin_book(home)
    book.register("heart", call_the_roll(home.root / "heart.csv", "heart", "pid", book.key))
    book.set_budget("heart", epsilon=epsilon, delta=1e-3, unit="patient")


def test_a_run_that_costs_more_than_is_left(home: SiloHome) -> None:
    set_budget(home, 100.0)
    expect(line(look(home, more=PRIVATE), "budget"), Level.OK, "it fits: 0.000 of 100 are spent or reserved")
    set_budget(home, 2.0)
    expect(line(look(home, more=PRIVATE), "budget"), Level.FAILED, "epsilon would reach", "of 2 at delta")


def test_a_run_without_privacy_on_data_with_a_budget(home: SiloHome) -> None:
    set_budget(home, 2.0)
    expect(line(look(home), "budget"), Level.FAILED, "has no differential privacy", 'mode = "record"')


def test_a_run_that_costs_more_than_the_policy_allows(home: SiloHome) -> None:
    home.policy.write_text("smallest_noise_multiplier = 50.0\n")
    expect(line(look(home, more=PRIVATE), "budget"), Level.FAILED, "smallest_noise_multiplier")


def test_a_batch_that_fails(home: SiloHome) -> None:
    found = look(home, training="epochs = 1\nmax_update_norm = 1e-9")
    expect(line(found, "dry run"), Level.FAILED, "norm is above the limit", "learning rate")


@pytest.mark.parametrize(("timeout_s", "level"), [(30, Level.OK), (12, Level.WARNING), (6, Level.FAILED)])
def test_rounds_that_take_too_long(
    home: SiloHome, monkeypatch: pytest.MonkeyPatch, timeout_s: int, level: Level
) -> None:
    """46 records in batches of 16 are 3 steps."""
    measured = Rehearsal(step_s=2.0, evaluating_s=1.0, size_bytes=16, device="cpu", num_workers=1)
    monkeypatch.setattr("fedplat_silo.doctor.study.rehearse", lambda *_: measured)
    found = line(look(home, rounds=f"timeout_s = {timeout_s}"), "round time")
    expect(found, level, f"about 7.0 s for 3 steps and the evaluation, without transfers; {timeout_s} s are allowed")
