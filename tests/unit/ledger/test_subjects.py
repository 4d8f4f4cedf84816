"""Patients who opted out, and patients who ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedplat.errors import DataError
from fedplat.reasons import Code
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.exclusion import Exclusion, exclusion_file, read_exclusion, read_kept
from fedplat_silo.ledger import call_the_roll, find_subject
from tests.unit.ledger.scene import Scene, steps, write_patients


def exclude(scene: Scene, *patients: str, dataset: str = "heart") -> int | None:
    exclusion_file(scene.home).write_text("pid\n" + "".join(f"{one}\n" for one in patients))
    found = read_exclusion(exclusion_file(scene.home))
    roll = call_the_roll(scene.folder / f"{dataset}.csv", dataset, "pid", scene.book.key)
    return scene.book.exclude(dataset, found, roll)


def test_the_list(tmp_path: Path) -> None:
    path = tmp_path / "exclude.csv"
    assert read_exclusion(path) == Exclusion()
    path.write_text("\ufeffpid\r\n 7 \r\n\r\n0012\r\n", encoding="utf-8")
    assert read_exclusion(path) == Exclusion("pid", frozenset({"7", "0012"}))
    path.write_text("pid\n")
    assert read_exclusion(path) == Exclusion()
    assert "7" not in repr(Exclusion("pid", frozenset({"7"})))


@pytest.mark.parametrize(
    "content", [b"", b"pid,age\n1,2\n", b"pid\n1,2\n", b"\n\n", b"pid\n\xff\n", b'pid\n"1\n', b" \n1\n"]
)
def test_a_list_that_is_not_understood_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "exclude.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"exclude\.csv"):
        read_exclusion(path)


def test_their_records_are_left_out(tmp_path: Path) -> None:
    path = write_patients(tmp_path / "heart.csv", [1, 2, 3, 2])
    without = Exclusion("pid", frozenset({"2", "9"}))
    table = read_kept(path, ("age",), "heart", without)
    assert (table.cells, table.lines) == ({"age": ["40", "42"]}, [2, 4])
    assert read_kept(path, ("pid", "age"), "heart", without).cells["pid"] == ["1", "3"]
    assert len(read_kept(path, ("age",), "heart", Exclusion())) == 4


def test_data_without_that_column_are_refused_and_its_name_stays(tmp_path: Path) -> None:
    path = write_patients(tmp_path / "heart.csv", [1])
    with pytest.raises(Refused) as caught:
        read_kept(path, ("age",), "heart", Exclusion("secret_id", frozenset({"1"})))
    assert caught.value.reason.code is Code.DATASET_UNREADABLE
    assert "secret_id" not in str(caught.value.reason.words)
    with pytest.raises(Refused) as caught:
        read_kept(path, ("weight",), "heart", Exclusion("pid", frozenset({"1"})))
    assert caught.value.reason.words == {"column": "weight"}


def test_its_use_is_in_the_book_once(scene: Scene) -> None:
    scene.register()
    before = scene.book.head()
    assert exclude(scene) == 0
    assert scene.book.head() == before
    assert exclude(scene, "3", "77") == 1
    after = scene.book.head()
    assert after[0] == before[0] + 1
    assert exclude(scene, "77", "3") == 1
    assert scene.book.head() == after
    assert exclude(scene) == 0
    assert scene.book.head()[0] == after[0] + 1


def test_a_patient_asks(scene: Scene) -> None:
    scene.register(patients=range(10))
    scene.register("stroke", range(100, 110), column=None)
    scene.reserve("early", mode="none")
    scene.reserve("r-1", steps(5))
    scene.book.spend("r-1", 1, "a", [steps(1)])
    exclude(scene, "3")
    scene.book.spend("r-1", 2, "a", [steps(1)])
    scene.reserve("late", steps(5))
    scene.book.spend("late", 1, "a", [steps(1)])
    scene.register(patients=range(12))
    scene.book.spend("late", 2, "a", [steps(1)])

    def runs(patient: str) -> dict[str, int]:
        return {part.run: part.num_releases for part in find_subject(scene.book, patient).runs}

    assert runs("1") == {"early": 0, "r-1": 2, "late": 2}
    assert runs("3") == {"early": 0, "r-1": 1}
    assert runs("11") == {"late": 1}
    assert runs("99") == {}
    left_out = find_subject(scene.book, "3")
    assert (left_out.datasets, left_out.excluded_from, left_out.not_searched) == (("heart",), ("heart",), ("stroke",))


def test_who_left_a_dataset_is_still_told_of_the_runs(scene: Scene) -> None:
    scene.register(patients=range(10))
    scene.reserve("r-1", steps(5))
    scene.book.spend("r-1", 1, "a", [steps(1)])
    scene.register(patients=range(5))
    scene.book.spend("r-1", 2, "a", [steps(1)])
    found = find_subject(scene.book, "7")
    assert (found.datasets, [part.num_releases for part in found.runs]) == ((), [1])
