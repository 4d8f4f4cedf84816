"""Private runs as users meet them: real silos, secure aggregation on, and what their ledgers say afterwards."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedplat.cli import load_commands
from fedplat.home import SiloHome
from fedplat.ledger import from_wire
from fedplat.privacy import SampledGaussian, epsilon
from fedplat.privacy.planning import planned_event
from fedplat.report.federation.model import FederationFile
from fedplat.spec import parse_spec
from fedplat_silo.ledger import find_book
from fedplat_silo.ledger.state import State, events_of
from tests.support.federation import Federation, federation, wait_until

SILOS = ("silo-a", "silo-b", "silo-c")
NUM_RECORDS = 200
DELTA = 1e-4
POLICY = 'allowed_tasks = ["*"]\nmax_threads = 1\n'
SPEC = """
name = "private"
rounds = {{ count = {rounds}, timeout_s = 60 }}
silos = {{ minimum = 2, names = ["silo-a", "silo-b", "silo-c"], join_timeout_s = 60 }}
data = {{ name = "{dataset}", test_share = 0.25 }}
strategy = {{ weighting = "uniform" }}
secure_aggregation = {{ enabled = true, min_cohort = 2 }}
governance = {{ purpose = "Tell the ill by age", shared_patients = [["silo-c", "silo-b"]] }}
[task]
name = "tabular"
[task.options]
patient = "pid"
target = {{ column = "ill", categories = ["no", "yes"] }}
features = [{{ column = "age", kind = "numeric", center = 50, scale = 10 }}]
[training]
steps = {steps}
batch_size = 16
learning_rate = 1.0
"""
PRIVACY = """
[privacy]
mode = "record"
metrics = "unprotected"
noise_multiplier = 1.5
delta = 1e-4
expected_batch_size = 20
"""


NOISED = PRIVACY.replace('"unprotected"', '"noised"\nmetrics_noise_multiplier = 8.0')


def spec(*, rounds: int = 3, steps: int = 20, dataset: str = "clinic", privacy: str = PRIVACY) -> str:
    given = {"rounds": rounds, "steps": steps, "dataset": dataset}
    return SPEC.format(**given) + privacy


def write_table(path: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    ages = random.normal(50, 10, NUM_RECORDS)
    rows = [f"p{seed}-{i},{age:.3f},{'yes' if age > 50 else 'no'}" for i, age in enumerate(ages)]
    path.write_text("pid,age,ill\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def running() -> Iterator[Federation]:
    with federation() as fed:
        for number, silo in enumerate(SILOS):
            fed.join(silo, wait=False, policy=POLICY + "min_cohort = 2\n", data=tables(fed, number))
        fed.wait_connected(*SILOS, timeout_s=60)
        yield fed


@pytest.fixture
def fed(running: Federation) -> Iterator[Federation]:
    """Everybody up and nothing to do, however the last test ended. No traceback on any console."""
    for left in (r["id"] for r in running.ask("/runs") if r["finished_at"] is None):
        running.command("run", "stop", left)
    yield running
    assert "Traceback" not in running.all_logs()
    assert "Traceback" not in (running.folder / "server" / "server" / "server.log").read_text()


def tables(fed: Federation, number: int) -> dict[str, Path]:
    """Datasets without a patient in common, so that each has a budget of its own."""
    names = ("clinic", "small", "killed", "guarded", "noised")
    return {
        name: write_table(fed.folder / f"{number}-{name}.csv", 10 * number + place) for place, name in enumerate(names)
    }


def book(fed: Federation, silo: str) -> State:
    return find_book(SiloHome(fed.folder / "silos", silo)).look()


def client(fed: Federation, *words: str, silo: str) -> Any:
    return fed.json("client", *words, "--silo", silo, "--home", str(fed.folder / "silos"))


def set_budget(fed: Federation, silo: str, dataset: str, limit: float) -> None:
    client(
        fed,
        "budget",
        "set",
        "--dataset",
        dataset,
        "--epsilon",
        str(limit),
        "--delta",
        str(DELTA),
        "--patient",
        "pid",
        silo=silo,
    )


def test_a_private_run_costs_what_the_accountant_says(fed: Federation) -> None:
    (fed.silo_home("silo-c") / "exclude.csv").write_text("pid\np20-0\np20-1\n")
    for silo in SILOS:
        set_budget(fed, silo, "clinic", 8.0)
    run = fed.submit(spec())
    view = fed.wait_for(run)
    assert [len(r["cohort"]) for r in view["rounds"]] == [3, 3, 3], (view["silos"], fed.all_logs())
    kept = {one["silo_name"]: one for one in view["ledgers"]}
    for silo in SILOS:
        wait_until(lambda silo=silo: not book(fed, silo).runs[run].is_open, 20)
        page = book(fed, silo).runs[run]
        [happened] = events_of(page.spent)
        assert (happened.noise_multiplier, happened.num_steps) == (1.5, 60)
        num_units = round(20 / happened.sampling_rate)
        assert planned_event(parse_spec(spec()), num_units) == happened
        assert kept[silo]["epsilon"] == epsilon([happened], delta=DELTA) < 8.0
        assert kept[silo]["budget"] == 8.0
        verdict = client(fed, "budget", "verify", silo=silo)
        assert verdict["whole"]
        assert verdict["countersigned"] == page.first_seq
    assert "epsilon spent" in fed.command("run", "show", run)
    out = client(fed, "subject", "p20-0", silo="silo-c")
    assert out["excluded_from"] == ["clinic"]
    assert [part["run"] for part in client(fed, "subject", "p20-2", silo="silo-c")["runs"]] == [run]


def finished_run(fed: Federation) -> str:
    """The first private one there is, else a new one."""
    known = [r["id"] for r in fed.ask("/runs") if r["state"] == "finished"]
    private = [run for run in known if fed.snapshot(run)["spec"]["privacy"]["mode"] == "record"]
    return private[0] if private else str(fed.wait_for(fed.submit(spec()))["id"])


def report(*words: str, home: Path) -> str:
    """What `fedplat report` prints, in this process: it starts quicker."""
    return str(
        CliRunner().invoke(load_commands(), ["report", *words, "--home", str(home)], catch_exceptions=False).output
    )


def test_the_servers_report_says_what_the_books_say(fed: Federation) -> None:
    run, home, silos = finished_run(fed), fed.folder / "server", fed.folder / "silos"
    for silo in SILOS:
        wait_until(lambda silo=silo: not book(fed, silo).runs[run].is_open, 20)
    text = report("privacy", "--run", run, "--format", "json", home=home)
    found = FederationFile.model_validate_json(text).report
    events = {silo: events_of(book(fed, silo).runs[run].spent) for silo in SILOS}
    lines = {line.silo: line for line in found.privacy_loss.silos}
    assert {silo: line.alone and from_wire(line.alone.events) for silo, line in lines.items()} == events
    assert all(line.alone_is_known and line.num_rounds == 3 for line in lines.values())
    assert found.privacy_loss.alone is not None
    groups = [events["silo-a"], (*events["silo-b"], *events["silo-c"])]
    assert found.privacy_loss.alone.epsilon == max(epsilon(one, delta=DELTA) for one in groups)
    assert found.product.intended_use == "Tell the ill by age"
    failed = {one.name for one in found.accounting.assumptions if one.status == "fail"}
    assert failed == {"metrics-counted"}
    assert found.run is not None
    assert found.run.masking is not None
    assert found.run.masking.smallest_cohort == 3
    page = fed.folder / "report.html"
    assert "signed by server localhost" in report("privacy", "--run", run, "--output", str(page), home=home)
    for place in (home, silos):
        assert "NOT" not in report("verify", str(page), home=place), "the server and its silos know the key"
    assert "NOT checked" in report("verify", str(page), home=fed.folder / "nowhere")
    for words in ((), ("--silo", "silo-b"), ("--dataset", "clinic")):
        assert "someone who tries to tell" in report("privacy", *words, home=home)
    assert "silo silo-b" in report("privacy", "--silo", "silo-b", "--run", run, home=silos)


@pytest.mark.slow
def test_noised_metrics_cost_what_left(fed: Federation) -> None:
    """Two rounds, masked: each round's evaluation is in its release, and the closing one is a release of its own."""
    greedy = fed.folder / "greedy.toml"
    greedy.write_text(spec(privacy=NOISED.replace("noise_multiplier = 1.5", "epsilon = 0.5")))
    assert "4 evaluations alone come to epsilon" in fed.command("run", "submit", str(greedy), check=False)
    for silo in SILOS:
        set_budget(fed, silo, "noised", 8.0)
    view = fed.wait_for(fed.submit(spec(dataset="noised", rounds=2, privacy=NOISED)))
    run = str(view["id"])
    assert [len(r["cohort"]) for r in view["rounds"]] == [3, 3], (view["silos"], fed.all_logs())
    tested = {e["round_number"]: e for e in view["evaluations"] if e["split"] == "test"}
    assert tested.keys() == {0, 1, 2}
    assert all(0 <= e["metrics"]["accuracy"] <= 1 and "auroc" not in e["metrics"] for e in tested.values())
    assert {e["num_examples"] for e in tested.values()} == {tested[0]["num_examples"]}
    trained = [e for e in view["evaluations"] if e["split"] == "train"]
    assert all(e["num_examples"] == 0 and e["loss"] is None for e in trained)
    for silo in SILOS:
        wait_until(lambda silo=silo: not book(fed, silo).runs[run].is_open, 20)
        page = book(fed, silo).runs[run]
        steps, figures = events_of(page.spent)
        assert (steps.noise_multiplier, steps.num_steps) == (1.5, 40)
        assert figures == SampledGaussian(sampling_rate=1.0, noise_multiplier=8.0, num_steps=3)
        assert page.spent == page.planned
        assert sorted(number for number, _ in page.spends) == [1, 2, 2]
    kept = {one["silo_name"]: one for one in view["ledgers"] if one["run_id"] == run}
    assert kept["silo-a"]["epsilon"] == epsilon(events_of(book(fed, "silo-a").runs[run].spent), delta=DELTA)
    text = report("privacy", "--run", run, "--format", "json", home=fed.folder / "server")
    found = FederationFile.model_validate_json(text).report
    for line in found.privacy_loss.silos:
        assert line.alone is not None
        assert from_wire(line.alone.events) == events_of(book(fed, line.silo).runs[run].spent)
        assert line.alone_is_known
    assert not [one.name for one in found.accounting.assumptions if one.status == "fail"]


def test_a_report_on_a_run_has_curves_and_who_took_part(fed: Federation) -> None:
    run, home = finished_run(fed), fed.folder / "server"
    rows = list(csv.DictReader(io.StringIO(fed.command("report", "run", run, "--format", "csv"))))
    assert len(rows) == 9
    assert {(row["silo"], row["in_the_sum"]) for row in rows} == {(silo, "1") for silo in SILOS}
    for form in ("html", "pdf", "md"):
        report("run", run, "--output", str(fed.folder / f"run.{form}"), home=home)
    page = (fed.folder / "run.html").read_text()
    for told in (
        "Loss",
        "Figures on the test records",
        "accuracy",
        "Where a round&#x27;s time went",
        "3: silo-a, silo-b, silo-c",
        "expected_batch_size",
    ):
        assert told in page, told
    assert (fed.folder / "run.pdf").read_bytes().startswith(b"%PDF")


def test_a_budget_that_is_too_small_refuses_with_the_figures(fed: Federation) -> None:
    set_budget(fed, "silo-b", "small", 0.1)
    view = fed.wait_for(fed.submit(spec(dataset="small", rounds=1)))
    assert view["rounds"][0]["cohort"] == ["silo-a", "silo-c"]
    [refused] = [s for s in view["silos"] if s["state"] == "refused"]
    assert (refused["silo_name"], refused["reason_code"]) == ("silo-b", "budget_exceeded")
    words = refused["reason"]["words"]
    assert (words["budget"], words["spent"]) == ("0.1", "0.000")
    assert float(words["total"]) == float(words["asked"]) > 0.1
    assert "epsilon would reach" in refused["reason"]["text"]


def test_a_run_without_privacy_is_refused_where_there_is_a_budget(fed: Federation) -> None:
    set_budget(fed, "silo-a", "guarded", 8.0)
    view = fed.wait_for(fed.submit(spec(dataset="guarded", rounds=1, privacy="")))
    said = {s["silo_name"]: s["reason_code"] for s in view["silos"] if s["state"] == "refused"}
    assert said == {"silo-a": "run_unprotected"}
    assert len(book(fed, "silo-b").runs[view["id"]].spends) == 1, "it took part, which `client subject` shows"


@pytest.mark.slow
def test_a_silo_that_is_killed_in_a_round_charges_at_most_that_round_again(fed: Federation) -> None:
    for silo in SILOS:
        set_budget(fed, silo, "killed", 1000.0)
    run = fed.submit(spec(dataset="killed", steps=3000, rounds=3))
    wait_until(fed.in_round(run, 2, "silo-b"), 90, fed.all_logs)
    fed.kill("silo-b")
    fed.join("silo-b", wait=False, policy=POLICY + "min_cohort = 2\n", data=tables(fed, 1))
    view = fed.wait_for(run)
    assert view["rounds_committed"] == 3
    rounds_of_b = sum("silo-b" in r["cohort"] for r in view["rounds"])
    wait_until(lambda: not book(fed, "silo-b").runs[run].is_open, 20)
    page = book(fed, "silo-b").runs[run]
    num_steps = sum(event.num_steps for event in events_of(page.spent))
    assert 3000 * rounds_of_b <= num_steps <= 3000 * (rounds_of_b + 1)
    assert client(fed, "budget", "verify", silo="silo-b")["whole"]


@pytest.mark.slow
def test_at_its_limit_a_silo_stops_and_the_others_go_on(fed: Federation) -> None:
    for silo in SILOS:
        set_budget(fed, silo, "clinic", 1000.0)
    run = fed.submit(spec(steps=3000, rounds=6))
    wait_until(lambda: bool(fed.snapshot(run)["rounds_committed"] >= 1), 90, fed.all_logs)
    set_budget(fed, "silo-a", "clinic", 0.01)
    view = fed.wait_for(run)
    last = [p for p in view["silo_rounds"] if p["round_number"] == 6]
    assert {p["silo_name"]: p["reason_code"] for p in last}["silo-a"] == "budget_exceeded"
    assert view["rounds"][-1]["cohort"] == ["silo-b", "silo-c"]
