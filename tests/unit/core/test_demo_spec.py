"""What the demo is made of, without playing it."""

from __future__ import annotations

from pathlib import Path

from fedplat.demo import DELTA, EPSILON, HOSPITALS, PATIENT, PATIENTS, PRIVATE, edited
from fedplat.privacy.planning import planned_event
from fedplat.spec import parse_spec
from fedplat.spec.template import write_template
from fedplat_silo.demo_data import write_hospitals


def test_the_template_becomes_a_private_spec() -> None:
    spec = parse_spec(edited(write_template("tabular"), PATIENTS | PRIVATE))
    assert spec.privacy.is_private
    assert (spec.privacy.epsilon, spec.privacy.delta) == (EPSILON, DELTA)
    assert spec.task.options["patient"] == PATIENT
    assert planned_event(spec, 60).noise_multiplier > 0


def test_the_hospitals_have_patients_of_their_own(tmp_path: Path) -> None:
    tables = [path.read_text().splitlines() for path in write_hospitals(tmp_path, HOSPITALS)]
    assert {table[0].split(",")[0] for table in tables} == {PATIENT}
    records = [line.split(",", 1)[1] for table in tables for line in table[1:]]
    assert len(records) == len(set(records)) == 569
