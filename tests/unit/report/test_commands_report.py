"""From a silo's real book to a file, and back."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedplat.commands_report import report
from fedplat.errors import FedplatError
from fedplat.home import ServerHome
from fedplat.identity import ca_fingerprint, ensure_authority, fingerprint, public_pem
from fedplat.privacy import SampledGaussian, epsilon
from fedplat.report import ReportFile
from fedplat.spec import load_spec
from fedplat_silo.approvals import ask
from fedplat_silo.membership import Membership, Place, save_membership
from fedplat_silo.records import remember_run, retire_run
from tests.support.specs import table
from tests.unit.ledger.scene import Scene

PRIVATE = """
[privacy]
mode = "record"
metrics = "none"
noise_multiplier = 2.0
delta = 1e-5
[strategy]
weighting = "uniform"
"""


def some(num: int) -> SampledGaussian:
    return SampledGaussian(sampling_rate=0.02, noise_multiplier=1.5, num_steps=num)


@pytest.fixture
def silo(tmp_path: Path) -> Scene:
    """Thirty patients, a budget, and a run that released twice of three times."""
    scene = Scene(tmp_path)
    scene.register(patients=range(30))
    scene.budget(4)
    scene.reserve("r-1", some(300))
    for number in (1, 2):
        scene.book.spend("r-1", number, f"d{number}", [some(100)])
    return scene


def enrol(silo: Scene) -> None:
    """As if it had joined this server."""
    home = ServerHome(silo.folder)
    home.create()
    ca_pem = ensure_authority(home).certificate_pem
    place = Place(
        address="localhost:1",
        node_id=1,
        server_key=public_pem(silo.server),
        ca_fingerprint=ca_fingerprint(ca_pem),
        key_fingerprint=fingerprint(silo.key.public_key()),
        invite="0" * 64,
    )
    save_membership(silo.home, Membership(silo.home.name, place, ca_pem, silo.key))


def call(silo: Scene, *arguments: str) -> Result:
    done = CliRunner().invoke(report, [*arguments, "--home", str(silo.folder)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def made(silo: Scene, *arguments: str) -> ReportFile:
    return ReportFile.model_validate_json(call(silo, "privacy", *arguments, "--format", "json").stdout)


def test_a_run_by_the_book(silo: Scene) -> None:
    found = made(silo, "--run", "r-1").report
    assert found.privacy_loss.alone is not None
    assert found.privacy_loss.alone.epsilon == epsilon([some(200)], delta=1e-5)
    assert found.accounting.lifetime.committed == epsilon([some(300)], delta=1e-5)
    assert [one.round for one in found.accounting.releases] == [1, 2]
    book = found.governance.ledger
    assert book is not None
    assert (book.seq, book.head) == silo.book.head()
    assert [d.num_patients for d in found.datasets] == [30]


def test_the_only_dataset_is_meant_and_its_name_is_checked(silo: Scene) -> None:
    assert made(silo).report.accounting.lifetime.after == epsilon([some(200)], delta=1e-5)
    assert made(silo, "--dataset", "heart").report.kind == "lifetime"
    silo.register("other", patients=range(100, 110))
    for arguments in ((), ("--dataset", "x"), ("--run", "r-9")):
        with pytest.raises(FedplatError) as caught:
            made(silo, *arguments)
        assert "There are:" in caught.value.hint


def test_a_signed_page_is_verified(silo: Scene) -> None:
    enrol(silo)
    page = silo.folder / "report.html"
    assert (
        "signed by silo hospital-a"
        in call(silo, "privacy", "--silo", "hospital-a", "--run", "r-1", "--output", str(page)).stdout
    )
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "NOT" not in call(silo, "verify", str(page)).stdout
    assert json.loads(call(silo, "verify", str(page), "--json").stdout)["key_is_known"] is True
    elsewhere = ["verify", str(page), "--home", str(silo.folder / "nowhere")]
    assert "NOT checked" in CliRunner().invoke(report, elsewhere).stdout
    with pytest.raises(FedplatError, match="another key"):
        call(silo, "verify", str(page), "--fingerprint", "0" * 64)
    page.write_text(page.read_text().replace("coin toss", "good guess", 1))
    with pytest.raises(FedplatError, match="does not say"):
        call(silo, "verify", str(page))


def test_a_silo_without_a_key_signs_nothing(silo: Scene) -> None:
    assert "not enrolled" in made(silo).unsigned_because


def test_an_old_copy_of_the_book_is_reported_and_not_signed(silo: Scene) -> None:
    enrol(silo)
    files = silo.files()
    silo.book.spend("r-1", 3, "d3", [some(100)])
    silo.restore(files | {"ledger.head": silo.files()["ledger.head"]})
    file = made(silo, "--silo", "hospital-a")
    assert file.signature is None
    assert "not whole" in file.unsigned_because


def test_a_plan_before_the_run(silo: Scene) -> None:
    plan = silo.folder / "study.toml"
    plan.write_text(table("heart", rounds=10) + PRIVATE)
    found = made(silo, "--plan", str(plan), "--units", "30").report
    assert found.kind == "plan"
    assert found.privacy_loss.privacy_unit == "record"
    assert found.accounting.runs[-1].spec is not None
    assert found.accounting.runs[-1].spec.metrics == "none"
    assert found.accounting.lifetime.before == epsilon([some(300)], delta=1e-5)
    for wrong in (["--plan", str(plan)], ["--units", "3"], ["--run", "r-1", "--dataset", "heart"]):
        assert CliRunner().invoke(report, ["privacy", *wrong]).exit_code == 2


def test_a_plan_with_noised_metrics(silo: Scene) -> None:
    """Ten rounds of one step, eleven evaluations."""
    plan = silo.folder / "study.toml"
    noised = PRIVATE.replace('"none"', '"noised"\nmetrics_noise_multiplier = 20.0')
    plan.write_text(table("heart", rounds=10) + noised)
    found = made(silo, "--plan", str(plan), "--units", "30").report
    [steps, figures] = found.accounting.runs[-1].may_still_spend
    assert (figures.sampling_rate, figures.noise_multiplier, figures.num_steps) == (1.0, 20.0, 11)
    assert found.privacy_loss.alone is not None
    assert found.privacy_loss.alone.epsilon == epsilon([steps.fact(), figures.fact()], delta=1e-5)
    plan.write_text(plan.read_text().replace("noise_multiplier = 2.0", "epsilon = 0.5"))
    with pytest.raises(FedplatError, match=r"11 evaluations alone come to epsilon 0\.591 at"):
        call(silo, "privacy", "--plan", str(plan), "--units", "30")


def test_a_plan_before_there_is_a_ledger(silo: Scene, tmp_path: Path) -> None:
    (tmp_path / "b" / "silos" / "new").mkdir(parents=True, mode=0o700)
    plan = tmp_path / "study.toml"
    plan.write_text(table("heart") + PRIVATE)
    done = CliRunner().invoke(report, ["privacy", "--plan", str(plan), "--units", "300", "--home", str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    assert "There is no budget" in done.stdout
    assert "There is no ledger yet" in done.stdout


@pytest.mark.parametrize("kept", ["asked about", "over", "altered"])
def test_the_spec_of_a_run_is_known_by_the_hash_in_the_book(silo: Scene, kept: str) -> None:
    plan = silo.folder / "study.toml"
    plan.write_text(table("heart") + PRIVATE)
    spec = load_spec(plan)
    silo.book.reserve(
        "r-2", spec_hash=spec.hash, dataset="heart", mode="record", unit="patient", delta=1e-5, events=[some(10)]
    )
    if kept == "asked about":
        ask(silo.home, "r-2", spec)
    else:
        remember_run(silo.home, "r-2", spec)
        retire_run(silo.home, "r-2", spec.hash)
    if kept == "altered":
        past = silo.home.run("r-2") / "past.json"
        past.write_text(past.read_text().replace('"metrics":"none"', '"metrics":"unprotected"'))
    facts = made(silo, "--run", "r-2").report.accounting.runs[-1].spec
    assert (facts and (facts.metrics, facts.clip_norm)) == (None if kept == "altered" else ("none", 1))


def test_what_is_no_report(silo: Scene) -> None:
    other = silo.folder / "x.md"
    other.write_bytes(b"\xff\xfe")
    with pytest.raises(FedplatError, match="cannot be read"):
        call(silo, "verify", str(other))
    other.write_text("# Report")
    with pytest.raises(FedplatError, match="no privacy report"):
        call(silo, "verify", str(other))


def test_a_folder_that_is_not_there(silo: Scene) -> None:
    with pytest.raises(FedplatError, match="cannot be written: No such file or directory"):
        call(silo, "privacy", "--output", str(silo.folder / "nowhere" / "report.html"))


def test_where_there_is_neither_side_it_says_what_to_do(tmp_path: Path) -> None:
    for more, words in ((), "neither a server nor a silo"), (("--silo", "x"), "no silo x"):
        with pytest.raises(FedplatError, match=words) as caught:
            CliRunner().invoke(report, ["privacy", "--home", str(tmp_path), *more], catch_exceptions=False)
        assert "FEDPLAT_HOME" in caught.value.hint


def test_a_plan_is_weighed_at_the_silo_though_a_server_is_there_too(silo: Scene) -> None:
    enrol(silo)
    plan = silo.folder / "study.toml"
    plan.write_text(table("heart") + PRIVATE + '[governance]\nlegal_basis = "consent"\n')
    found = made(silo, "--plan", str(plan), "--units", "30").report
    assert (found.kind, found.silo) == ("plan", "hospital-a")
    assert ("Legal basis", "consent") in found.governance.said
    assert "Legal basis" not in found.governance.to_be_filled_in


def test_a_pdf_is_for_reading(silo: Scene) -> None:
    paper = silo.folder / "report.pdf"
    call(silo, "privacy", "--output", str(paper))
    assert paper.read_bytes().startswith(b"%PDF")
    with pytest.raises(FedplatError, match="is a PDF"):
        call(silo, "verify", str(paper))
    refused = CliRunner().invoke(report, ["privacy", "--format", "pdf", "--home", str(silo.folder)])
    assert refused.exit_code == 2
    assert "--output" in refused.output
