"""`fedplat client approve` shows what a run would cost these patients, by the data as they are here."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from fedplat.cli import load_commands
from fedplat.errors import FedplatError
from fedplat.report.signing import read_report
from fedplat.spec import load_spec
from fedplat_silo.approvals import ask, find
from fedplat_silo.planning import prepare
from tests.unit.audit.test_command import call, silo, write_data
from tests.unit.ledger.scene import Scene

__all__ = ["silo"]


@pytest.fixture
def waiting(silo: Scene) -> Scene:
    ask(silo.home, "r-1", load_spec(silo.folder / "study.toml"))
    return silo


def test_an_approval_shows_page_one_of_the_plans_report(waiting: Scene) -> None:
    arguments = ["client", "approve", "r-1", "--home", str(waiting.folder)]
    done = CliRunner().invoke(load_commands(), arguments, input="n\n")
    assert "times in 100" in " ".join(done.stdout.split())
    assert "--report plan.html writes the whole report" in done.stdout
    assert find(waiting.home, "r-1").decision == "pending"


def test_the_whole_report_goes_to_a_file(waiting: Scene) -> None:
    target = waiting.folder / "plan.json"
    done = call(waiting, "client", "approve", "r-1", "--yes", "--report", str(target))
    assert str(target) in done.stdout
    report = read_report(target.read_text()).report
    assert report.kind == "plan"
    assert find(waiting.home, "r-1").decision == "approved"


def test_a_plan_is_for_as_many_patients_as_would_be_trained_on(waiting: Scene) -> None:
    spec = load_spec(waiting.folder / "study.toml")
    some = len(prepare(waiting.home, spec).units)
    (waiting.home.path / "exclude.csv").write_text("pid\n" + "".join(f"{i}\n" for i in range(10)))
    assert some - 10 <= len(prepare(waiting.home, spec).units) < some
    write_data(waiting.folder / "heart.csv", num=40)
    assert len(prepare(waiting.home, spec).units) < 40


def test_no_value_of_a_record_is_shown(waiting: Scene) -> None:
    data = waiting.folder / "heart.csv"
    data.write_text(data.read_text().replace("3,33,", "3,Jane Doe,", 1))
    done = CliRunner().invoke(load_commands(), ["client", "approve", "r-1", "--home", str(waiting.folder)], input="n\n")
    assert "There is no report on it" in done.stdout
    assert "Jane Doe" not in done.output
    assert "Jane Doe" in waiting.home.log.read_text()
    with pytest.raises(FedplatError) as error:
        call(waiting, "client", "audit", "--spec", str(waiting.folder / "study.toml"))
    assert "Jane Doe" not in str(error.value)


def test_where_there_is_no_report_the_reason_is_shown(waiting: Scene) -> None:
    (waiting.folder / "heart.csv").unlink()
    done = CliRunner().invoke(load_commands(), ["client", "approve", "r-1", "--home", str(waiting.folder)], input="n\n")
    assert "There is no report on it" in done.stdout
    assert "Let it take part?" in done.stdout
