from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedplat.errors import DataError, SpecError
from fedplat.reasons import Code, Reason
from fedplat_silo.alone import POOLED, Outcome, train_alone
from fedplat_silo.comparison import compare, show_outcomes
from fedplat_silo.trainer.errors import TrainingFailed
from tests.unit.silo_process.fakes import Cast
from tests.unit.silo_process.test_client_app import make_spec

TASK = {"name": "tabular", "options": {"target": {"column": "y"}, "features": [{"column": "x", "kind": "numeric"}]}}


def spec(**more: Any) -> Any:
    return make_spec(task=TASK, **more)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for name, text in (("a", "x,y\n1,2\n"), ("b", "y,x\n4,3\n6,5\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    return [tmp_path / "a.csv", tmp_path / "b.csv"]


def test_each_model_is_measured_on_all_test_records(paths: list[Path], tmp_path: Path) -> None:
    cast = Cast()
    outcomes = list(train_alone(spec(), paths, cast.make, tmp_path / "log"))
    assert [o.trained_on for o in outcomes] == ["a", "b"]
    assert [o.num_test for o in outcomes] == [10, 10], "5 of each dataset"
    rounds = ["train 1", "train 2", "train 3", "evaluate 3", "evaluate 3"]
    assert cast.did == ["start", "start", *rounds, *rounds, "close", "close"]


def test_pooled_data_has_all_records_with_their_columns_in_order(paths: list[Path], tmp_path: Path) -> None:
    cast = Cast()
    steps = train_alone(spec(), paths, cast.make, tmp_path / "log", pooled=True)
    outcomes, pooled = [], ""
    for outcome in steps:
        outcomes.append(outcome)
        if outcome.trained_on == POOLED:
            pooled = cast.plans[-1].data.read_text()
    assert pooled.split() == ["x,y", "1,2", "3,4", "5,6"]
    assert outcomes[-1].num_test == 5
    assert not cast.plans[-1].data.exists(), "the records are removed"


def test_a_given_split_is_pooled_part_by_part(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("x,y\n1,1\n")
        (tmp_path / name / "test.csv").write_text("x,y\n2,2\n")
    cast = Cast()
    given = spec(data={"name": "heart", "split": "given"})
    for outcome in train_alone(given, [tmp_path / "a", tmp_path / "b"], cast.make, tmp_path / "log", pooled=True):
        if outcome.trained_on == POOLED:
            folder = cast.plans[-1].data
            assert (folder / "train.csv").read_text().split() == ["x,y", "1,1", "1,1"]
            assert (folder / "test.csv").read_text().split() == ["x,y", "2,2", "2,2"]
            assert folder.stat().st_mode & 0o777 == 0o700


def test_data_that_does_not_fit_is_said_by_dataset(paths: list[Path], tmp_path: Path) -> None:
    cast = Cast(failure=TrainingFailed(Reason.of(Code.COLUMN_MISSING, column="age")))
    with pytest.raises(DataError, match="a: its data has no column 'age'"):
        list(train_alone(spec(), paths, cast.make, tmp_path / "log"))
    assert cast.did[-1] == "close"


def test_what_cannot_be_compared_is_refused(paths: list[Path], tmp_path: Path) -> None:
    for bad, pooled in [
        (spec(model={"local": ["head.*"]}), False),
        (spec(model={"init": "start.safetensors"}), False),
        (make_spec(task={"name": "mine"}), True),
    ]:
        with pytest.raises(SpecError) as caught:
            list(train_alone(bad, paths, Cast().make, tmp_path / "log", pooled=pooled))
        assert caught.value.hint


def test_the_dataset_must_be_the_specs(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('name = "s"\ntask.name = "mine"\ndata.name = "heart"\nrounds.count = 1\ntraining.epochs = 1\n')
    with pytest.raises(DataError, match="the spec asks for the dataset 'heart'"):
        compare(str(tmp_path), file, "chest=/tmp", pooled=False)


def test_a_table_for_people_and_json_for_programs() -> None:
    outcomes = [Outcome("a", 20, 10, {"loss": 0.5, "auroc_bound": 0.1}), Outcome(POOLED, 60, 10, {"loss": 0.25})]
    lines = show_outcomes(outcomes, as_json=False)
    assert lines[0].split() == ["trained", "on", "records", "loss"]
    assert lines[-1] == "measured on 10 test records, those of all datasets"
    parsed = json.loads(show_outcomes(outcomes, as_json=True)[0])
    assert parsed["0"]["trained_on"] == "a"
    assert parsed["pooled"] == {"trained_on": POOLED, "num_train": 60, "num_test": 10, "loss": 0.25}
