"""All silos together: the largest of what they signed, or more where patients are shared, and never less."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest

from fedplat.errors import IdentityError
from fedplat.identity import fingerprint, new_key
from fedplat.ledger import Deed, Event
from fedplat.privacy import epsilon
from fedplat.report import data_of, render, verify_report
from fedplat.report.federation.assemble import make_federation_report
from fedplat.report.federation.model import FederationFile, FederationReport
from fedplat.report.model import Status
from fedplat.report.signing import read_report, sign_federation
from tests.unit.report.federation_scene import (
    DELTA,
    SERVER,
    facts,
    last_word,
    material,
    run_facts,
    signed,
    statement,
)
from tests.unit.report.scene import spec_facts, steps


@pytest.fixture
def told() -> FederationFile:
    return signed()


def judged(report: FederationReport, name: str) -> Status:
    return next(one.status for one in report.accounting.assumptions if one.name == name)


def test_the_federation_is_the_worst_silo(told: FederationFile) -> None:
    loss = told.report.privacy_loss
    assert loss.alone is not None
    assert loss.alone.epsilon == epsilon([steps(600)], delta=DELTA)
    assert loss.lifetime.epsilon == epsilon([steps(1000)], delta=DELTA)
    assert [line.alone.epsilon for line in loss.silos if line.alone] == [
        epsilon([steps(num)], delta=DELTA) for num in (300, 600, 100)
    ]
    assert loss.lifetime.right_in_100 == 59
    assert "right at most 59 times in 100" in told.report.summary[1]
    assert "declares it" in loss.rule
    assert not [line for line in told.report.summary if line.startswith("Attention")]


def test_noised_metrics_are_counted_and_not_called_unprotected(told: FederationFile) -> None:
    assert judged(told.report, "metrics-counted") is Status.PASS
    assert any("Nothing through figures of merit" in line for line in told.report.dp_flavor.unprotected_quantities)


def test_declared_overlap_composes() -> None:
    report = make_federation_report(material(overlaps=(("hospital-a", "hospital-b"),)))
    loss = report.privacy_loss
    assert loss.alone is not None
    assert loss.alone.epsilon == epsilon([steps(900)], delta=DELTA)
    assert loss.lifetime.epsilon == epsilon([steps(1500)], delta=DELTA)
    assert "hospital-a and hospital-b" in loss.rule
    assert [group.silos for group in loss.groups] == [("hospital-a", "hospital-b"), ("hospital-c",)]


def test_overlaps_that_touch_are_one_group() -> None:
    overlaps = (("hospital-a", "hospital-b"), ("hospital-b", "hospital-c"), ("hospital-a", "elsewhere"))
    report = make_federation_report(material(overlaps=overlaps))
    assert report.privacy_loss.lifetime.epsilon == epsilon([steps(1700)], delta=DELTA)


def test_populations_of_one_silo_do_not_compose() -> None:
    other = facts("hospital-a", 100, 100)
    assert other.latest is not None
    told = other.latest.told.model_copy(update={"population": "e" * 32})
    second = other.model_copy(update={"latest": other.latest.model_copy(update={"told": told})})
    silos = (facts("hospital-a", 200, 300), second)
    report = make_federation_report(material(run=None, silos=silos, subject="silo hospital-a"))
    assert report.privacy_loss.lifetime.epsilon == epsilon([steps(500)], delta=DELTA)
    assert report.privacy_loss.alone is None


def test_where_a_release_is_missing_the_whole_life_stands_for_the_run() -> None:
    whole = facts("hospital-b", 400, 600)
    partly = whole.model_copy(update={"releases": whole.releases[1:]})
    report = make_federation_report(material(silos=(partly,)))
    [line] = report.privacy_loss.silos
    assert not line.alone_is_known
    assert line.alone is not None
    assert line.alone.epsilon == epsilon([steps(1000)], delta=DELTA)
    assert judged(report, "run-alone-known") is Status.DECLARED


def test_a_silo_that_signed_nothing_has_no_bound() -> None:
    silent = facts("hospital-c", 1, 1, latest=None, releases=())
    report = make_federation_report(material(silos=(facts("hospital-a", 200, 300), silent)))
    assert report.privacy_loss.lifetime.epsilon is None
    assert report.privacy_loss.alone is not None
    assert report.privacy_loss.alone.right_in_100 == 100
    assert judged(report, "everybody-signed") is Status.FAIL
    assert "there is no bound" in report.summary[0]
    assert "as 1 of 2 silos have signed it" in report.product.description


def test_a_run_without_privacy_takes_the_bound_away() -> None:
    report = make_federation_report(material(silos=(facts("hospital-a", 200, 300, bare_runs=("r-0",)),)))
    assert report.privacy_loss.lifetime.epsilon is None
    assert report.privacy_loss.alone is not None
    assert report.privacy_loss.alone.epsilon == epsilon([steps(300)], delta=DELTA)
    assert "r-0" in report.dp_flavor.unprotected_quantities[-1]


def test_nobody_signs_where_a_silo_signed_another_figure() -> None:
    wrong = last_word(statement("hospital-a", Deed.CLOSED, [steps(500)], epsilon=0.2), "hospital-a")
    file = sign_federation(
        SERVER, make_federation_report(material(silos=(facts("hospital-a", 200, 300, latest=wrong),)))
    )
    assert file.signature is None
    assert "another epsilon" in file.unsigned_because
    with pytest.raises(IdentityError, match="not signed"):
        verify_report(render(file, "json"))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"run": run_facts(spec=spec_facts("unprotected"))}, "metrics-counted"),
        ({"run": run_facts(delta=0.01)}, "small-delta"),
        ({"silos": (facts("hospital-a", 3000, 3000),)}, "within-budget"),
    ],
)
def test_what_does_not_hold_is_said_on_page_one(changes: dict[str, object], name: str) -> None:
    report = make_federation_report(material(**changes))
    assert judged(report, name) is Status.FAIL
    statement = next(one.statement for one in report.accounting.assumptions if one.name == name)
    assert f"Attention, this does not hold: {statement}" in report.summary


def test_it_comes_back_from_json_and_from_the_page(told: FederationFile) -> None:
    key = fingerprint(SERVER.public_key())
    for text in (render(told, "json"), data_of(render(told, "html"))):
        verdict = verify_report(text, key)
        assert (verdict.file, verdict.fingerprint, verdict.is_known) == (told, key, True)
    with pytest.raises(IdentityError, match="another key than that of server localhost:8443"):
        verify_report(render(told, "json"), "0" * 64)


def _epsilon(raw: Any) -> None:
    raw["report"]["privacy_loss"]["lifetime"]["epsilon"] = 0.1


def _overlap(raw: Any) -> None:
    raw["report"]["summary"].pop()


@pytest.mark.parametrize("change", [_epsilon, _overlap])
def test_an_altered_report_is_refused(told: FederationFile, change: Any) -> None:
    raw = json.loads(render(told, "json"))
    change(raw)
    with pytest.raises(IdentityError, match="not as it was signed"):
        verify_report(json.dumps(raw))


def test_a_server_cannot_say_what_a_silo_has_not_signed(told: FederationFile) -> None:
    raw = json.loads(render(told, "json"))
    line = raw["report"]["privacy_loss"]["silos"][0]
    line["lifetime"]["events"][0]["num_steps"] = 5
    lying = read_report(json.dumps(raw))
    assert isinstance(lying, FederationFile)
    with pytest.raises(IdentityError, match="something else than silo hospital-a"):
        verify_report(render(sign_federation(SERVER, lying.report), "json"))
    line["lifetime"]["events"][0]["num_steps"] = 500
    line["statement"]["signature"] = "00" * 70
    forged = read_report(json.dumps(raw))
    assert isinstance(forged, FederationFile)
    with pytest.raises(IdentityError, match="is not as silo hospital-a signed it"):
        verify_report(render(sign_federation(SERVER, forged.report), "json"))


def test_a_silos_key_does_not_make_a_servers_report(told: FederationFile) -> None:
    assert told.signature is not None
    with pytest.raises(IdentityError, match="another key"):
        verify_report(render(sign_federation(new_key(), told.report), "json"), told.signature.fingerprint)


def test_the_csv_gives_the_same_figures(told: FederationFile) -> None:
    rows = list(csv.DictReader(io.StringIO(render(told, "csv"))))
    own = [row for row in rows if (row["silo"], row["kind"]) == ("hospital-b", "lifetime")]
    events = [Event.model_validate({name: row[name] for name in Event.model_fields}).fact() for row in own]
    assert epsilon(events, delta=DELTA) == told.report.privacy_loss.lifetime.epsilon


@pytest.mark.parametrize("form", ["html", "md", "json", "csv", "opendp"])
def test_every_format_is_always_the_same(told: FederationFile, form: str) -> None:
    text = render(told, form)
    assert text == render(told, form)
    assert "hospital-c" in text or "hospital\\-c" in text
    assert "complian" not in text.lower()


def test_a_budget_at_another_delta_says_so_and_no_run_has_no_rounds() -> None:
    told = last_word(statement("hospital-a", Deed.CLOSED, [steps(500)], delta=1e-3), "hospital-a")
    silos = (facts("hospital-a", 200, 300, latest=told), facts("hospital-b", 100, 100))
    report = make_federation_report(material(run=None, silos=silos, subject="all runs of all silos"))
    text = render(sign_federation(SERVER, report), "md")
    assert "| Silo | Dataset | For each | Of all runs | Reserved | Budget |" in text
    assert re.findall(r"\| hospital-. \| heart \| patient \| .* \| - \| (.*) \|", text) == ["3 at delta 0.001", "3"]


def test_no_noise_is_claimed_where_there_was_none() -> None:
    bare = run_facts(mode="none", spec=spec_facts("unprotected"))
    silos = (facts("hospital-a", 200, 300, bare_runs=("r-2",)),)
    for masking in (bare.masking, None):
        run = bare.model_copy(update={"masking": masking})
        text = render(sign_federation(SERVER, make_federation_report(material(run=run, silos=silos))), "md")
        for claim in ("each update is noised", "noised in its silo", "noised before it left", "noise in each silo"):
            assert claim not in text, claim
        assert "no update was noised" in text
        assert "| Promise | None: the run has no differential privacy" in text
