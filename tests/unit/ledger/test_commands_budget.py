"""What a privacy officer types, and what is then on the screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fedplat.errors import FedplatError
from fedplat_silo.approvals import ask, find
from fedplat_silo.commands import client
from fedplat_silo.datasets import remember_datasets
from tests.unit.ledger.scene import Scene, steps, write_patients
from tests.unit.ledger.test_policy_keys import plain, spec


@pytest.fixture
def silo(scene: Scene) -> Scene:
    """A home with a dataset of ten patients, and no budget yet."""
    remember_datasets(scene.home.datasets, [f"heart={write_patients(scene.folder / 'heart.csv', range(10))}"])
    return scene


def call(silo: Scene, *arguments: str) -> Result:
    done = CliRunner().invoke(client, [*arguments, "--home", str(silo.folder), "--silo", silo.home.name])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def facts(silo: Scene, *arguments: str) -> Any:
    return json.loads(call(silo, *arguments, "--json").stdout)


def set_budget(silo: Scene, epsilon: str = "8", *more: str) -> Result:
    return call(silo, "budget", "set", "--dataset", "heart", "--epsilon", epsilon, "--delta", "1e-5", *more)


def test_a_budget_is_set_shown_and_verified(silo: Scene) -> None:
    done = set_budget(silo, "8", "--patient", "pid")
    assert done.stdout == "dataset heart: epsilon 8 at delta 1e-05 for each patient, of all runs together\n"
    silo.reserve("r-1", steps(5))
    silo.book.spend("r-1", 1, "a", [steps(2)])
    shown = call(silo, "budget", "show").stdout.splitlines()
    assert shown[0] == "heart: budget epsilon 8 for each patient, at delta 1e-05"
    assert "spent 2.000; 5.000 with all that open runs may still spend" in shown[1]
    assert "run r-1 (heart, open): 1 releases, epsilon 2.000" in shown[2]
    [found] = facts(silo, "budget", "show")
    assert (found["budget"], found["spent"], found["committed"], found["unit"]) == (8, 2, 5, "patient")
    assert found["runs"][0]["num_steps"] == 2
    assert "the privacy ledger is whole: 5 entries" in call(silo, "budget", "verify").stdout
    assert facts(silo, "budget", "verify")["whole"] is True


def test_without_a_patient_column_it_is_for_records_and_the_column_is_remembered(silo: Scene) -> None:
    assert "for each record" in set_budget(silo).stdout
    assert "for each patient" in set_budget(silo, "8", "--patient", "pid").stdout
    assert "for each patient" in set_budget(silo, "9").stdout


def test_what_is_odd_about_a_budget_is_said(silo: Scene) -> None:
    silo.register("stroke")
    assert "patients in common with stroke" in set_budget(silo).stdout
    silo.reserve("r-1", steps(5))
    silo.book.spend("r-1", 1, "a", [steps(5)])
    assert "5.000 was spent already: nothing more" in set_budget(silo, "3").stdout
    assert facts(silo, "budget", "set", "--dataset", "heart", "--epsilon", "7", "--delta", "1e-5")["budget"] == 7


def test_a_run_without_privacy_is_shown_without_bound(silo: Scene) -> None:
    silo.register()
    silo.reserve("plain", mode="none")
    assert "run plain (heart, open): 0 releases, epsilon inf" in call(silo, "budget", "show").stdout
    assert facts(silo, "budget", "show")[0]["runs"][0]["spent"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epsilon", "-1", "--delta", "1e-5"], "epsilon"),
        (["--epsilon", "1", "--delta", "1"], "delta"),
        (["--epsilon", "1"], "delta"),
    ],
)
def test_a_budget_that_makes_no_sense(silo: Scene, arguments: list[str], words: str) -> None:
    done = call(silo, "budget", "set", "--dataset", "heart", *arguments)
    assert done.exit_code != 0
    assert words in done.output


@pytest.mark.parametrize(
    ("epsilon", "delta", "words"), [("nan", "1e-5", "epsilon = nan"), ("1", "nan", "delta is nan")]
)
def test_a_budget_that_is_not_a_number(silo: Scene, epsilon: str, delta: str, words: str) -> None:
    with pytest.raises(FedplatError, match=words):
        call(silo, "budget", "set", "--dataset", "heart", "--epsilon", epsilon, "--delta", delta)


def test_an_unknown_dataset(silo: Scene) -> None:
    with pytest.raises(FedplatError, match="no dataset 'x'") as caught:
        call(silo, "budget", "set", "--dataset", "x", "--epsilon", "1", "--delta", "1e-5")
    assert "--data x=PATH" in caught.value.hint


def test_a_damaged_ledger_is_an_error_for_people_and_a_fact_for_programs(silo: Scene) -> None:
    set_budget(silo)
    silo.home.ledger.write_bytes(b"")
    with pytest.raises(FedplatError, match="is empty"):
        call(silo, "budget", "verify")
    done = call(silo, "budget", "verify", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["whole"] is False


def test_a_patient_asks(silo: Scene) -> None:
    set_budget(silo, "8", "--patient", "pid")
    silo.reserve("r-1", steps(5))
    silo.book.spend("r-1", 1, "a", [steps(2)])
    shown = call(silo, "subject", "3").stdout
    assert "now in: heart" in shown
    assert "dataset heart, privacy record, 1 releases" in shown
    assert facts(silo, "subject", "3")["runs"][0]["num_releases"] == 1
    assert facts(silo, "subject", "99") == {"datasets": [], "excluded_from": [], "not_searched": [], "runs": []}


def test_runs_wait_for_approval(silo: Scene) -> None:
    assert "no run waits" in call(silo, "runs", "pending").stdout
    ask(silo.home, "r-1", spec())
    ask(silo.home, "r-2", plain())
    assert "r-1  heart, asked" in call(silo, "runs", "pending").stdout
    assert [a["run"] for a in facts(silo, "runs", "pending")] == ["r-1", "r-2"]
    done = call(silo, "approve", "r-1", "--yes")
    assert "privacy record: epsilon 3 at delta 1e-05" in done.stdout
    assert find(silo.home, "r-1").decision == "approved"
    done = call(silo, "approve", "r-2", "--refuse", "--yes")
    assert "no differential privacy" in done.stdout
    assert find(silo.home, "r-2").decision == "refused"
    with pytest.raises(FedplatError, match="r-3"):
        call(silo, "approve", "r-3", "--yes")


def test_an_approval_is_asked_for(silo: Scene) -> None:
    ask(silo.home, "r-1", spec())
    arguments = ["approve", "r-1", "--home", str(silo.folder)]
    assert CliRunner().invoke(client, arguments, input="n\n").exit_code == 1
    assert find(silo.home, "r-1").decision == "pending"
    assert CliRunner().invoke(client, arguments, input="y\n").exit_code == 0
    assert find(silo.home, "r-1").decision == "approved"


def test_there_is_nothing_to_show_yet(tmp_path: Path, quick: None) -> None:
    (tmp_path / "silos" / "hospital-a").mkdir(parents=True, mode=0o700)
    for command in ("show", "verify"):
        with pytest.raises(FedplatError, match="no privacy ledger yet"):
            CliRunner().invoke(client, ["budget", command, "--home", str(tmp_path)], catch_exceptions=False)
