"""The demo's data: the same at each hospital, whoever writes it."""

from __future__ import annotations

from pathlib import Path

from fedplat.demo import HOSPITALS
from fedplat_silo.demo_data import write_hospitals


def test_a_hospital_that_writes_its_own_part_gets_what_it_gets_among_all(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir(), together.mkdir()
    texts = [path.read_text() for path in write_hospitals(together)]
    assert [text.count("\n") - 1 for text in texts] == [231, 167, 104, 67]
    for name, text in zip(HOSPITALS, texts, strict=True):
        [path] = write_hospitals(alone, [name])
        assert path.read_text() == text


def test_every_record_is_at_one_hospital(tmp_path: Path) -> None:
    lines = [line for path in write_hospitals(tmp_path) for line in path.read_text().splitlines()[1:]]
    rows = [line.split(",", 1)[1] for line in lines]  # ids begin anew at each hospital
    assert len(rows) == len(set(rows)) == 569
