"""The layout of the OpenDP deployments registry."""

from __future__ import annotations

import json

import pytest

from fedplat.report import ReportFile, make_report, render, unsigned_report
from fedplat.spec.governance import GovernanceSection
from tests.unit.report import federation_scene
from tests.unit.report.scene import material, release, run, spec_facts

SECTIONS = ["product", "dp_flavor", "privacy_loss", "model", "accounting", "implementation", "resources"]


def test_both_reports_have_the_registrys_sections(file: ReportFile) -> None:
    for one in (file, federation_scene.signed()):
        record = json.loads(render(one, "opendp"))
        assert record["status"] == "Draft"
        deployment = record["deployment"]
        assert list(deployment) == SECTIONS
        assert one.report.privacy_loss.alone is not None
        parameters = {"epsilon": one.report.privacy_loss.alone.epsilon, "delta": 1e-5}
        assert deployment["privacy_loss"]["privacy_parameters"] == parameters
        assert deployment["privacy_loss"]["privacy_unit"] == "User-level"
        assert "all records of one patient" in deployment["privacy_loss"]["privacy_unit_description"]
        assert deployment["product"]["data_product_type"] == "Machine learning model"
        assert deployment["product"]["intended_use"] == "TODO"
        assert "smokers" in deployment["dp_flavor"]["unprotected_quantities"]


def test_what_the_spec_says_of_its_purpose_is_carried_on() -> None:
    said = GovernanceSection(purpose="Predict heart failure", controllers=("Hospital A", "Hospital B"))
    facts = spec_facts().model_copy(update={"governance": said})
    report = make_report(material(runs=(run("r-2", spec=facts),), releases=(release("r-2", 1, 100),)))
    record = json.loads(render(unsigned_report(report, "no key"), "opendp"))
    assert record["deployment"]["product"]["intended_use"] == "Predict heart failure"
    assert ("Controllers", "Hospital A, Hospital B") in report.governance.said
    assert "Controllers" not in report.governance.to_be_filled_in
    assert "Decision" in report.governance.to_be_filled_in


@pytest.mark.parametrize("unbounded", [True, False])
def test_no_bound_is_no_number(unbounded: bool) -> None:
    bare = run("r-2", mode="none", has_privacy=not unbounded)
    report = make_report(material(runs=(bare,), releases=(release("r-2", 1, 0 if unbounded else 10),)))
    parameters = json.loads(render(unsigned_report(report, ""), "opendp"))["deployment"]["privacy_loss"]
    assert ("epsilon" in parameters["privacy_parameters"]) is not unbounded
