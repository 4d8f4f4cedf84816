"""Whose budget it is: patients, whatever the dataset is called and however it grows."""

from __future__ import annotations

import hashlib

import pytest

from fedplat.errors import DataError
from fedplat_silo.ledger import BudgetExceeded, call_the_roll
from fedplat_silo.ledger.patients import PatientKey
from tests.unit.ledger.scene import Scene, steps, write_patients


def test_a_new_name_is_no_new_budget(scene: Scene) -> None:
    scene.register("heart")
    scene.budget(10)
    scene.reserve("r-1", steps(8))
    renamed = scene.register("cardio")
    assert renamed.shares_with == ("heart",)
    with pytest.raises(BudgetExceeded):
        scene.reserve("r-2", steps(3), dataset="cardio")
    scene.reserve("r-2", steps(2), dataset="cardio")


def test_the_same_records_are_known_without_their_patient_column(scene: Scene) -> None:
    scene.register("heart")
    assert scene.register("cardio", column=None).shares_with == ("heart",)


def test_columns_and_rows_in_another_order_are_the_same_records(scene: Scene) -> None:
    scene.register("heart", column=None)
    path = scene.folder / "turned.csv"
    path.write_text("age,pid\n" + "".join(f"{40 + one},{one}\n" for one in reversed(range(10))))
    assert scene.book.register("turned", call_the_roll(path, "turned", None, scene.book.key)).shares_with == ("heart",)


def test_one_patient_in_common_is_enough(scene: Scene) -> None:
    scene.register("heart", range(10))
    assert scene.register("stroke", range(10, 20)).shares_with == ()
    assert scene.register("all", [9, 100, 101]).shares_with == ("heart",)


def test_datasets_that_turn_out_to_share_patients_keep_both_budgets(scene: Scene) -> None:
    scene.register("heart", range(10))
    scene.register("stroke", range(10, 20))
    scene.budget(10)
    scene.budget(6, "stroke")
    scene.reserve("r-1", steps(4))
    scene.reserve("r-2", steps(2), dataset="stroke")
    both = scene.register("both", range(20))
    assert set(both.shares_with) == {"heart", "stroke"}
    assert {budget.epsilon for budget in scene.book.look().budgets(both.population)} == {6, 10}
    with pytest.raises(BudgetExceeded) as caught:
        scene.reserve("r-3", steps(1))
    assert caught.value.figures.budget == 6
    scene.book.spend("r-1", 1, "a", [steps(4)])
    scene.budget(10)
    scene.reserve("r-3", steps(4))


def test_growing_data_stay_one_population(scene: Scene) -> None:
    before = scene.register(patients=range(10))
    again = scene.register(patients=range(10))
    assert (again.version, again.is_new) == (before.version, False)
    grown = scene.register(patients=range(12))
    assert (grown.population, grown.is_new) == (before.population, True)
    exchanged = scene.register(patients=range(100, 110))
    assert exchanged.population == before.population, "the name is known, if nobody in it is"
    assert scene.register("old", range(5)).shares_with == ("heart",), "who left was charged"
    assert scene.register("new", range(100, 101)).shares_with == ("heart", "old")


def test_only_what_came_or_went_is_written(scene: Scene) -> None:
    scene.register(patients=range(100))
    scene.register(patients=range(1, 101))
    with scene.book.journal.reading() as pen:
        counts = [n for (n,) in pen.connection.execute("SELECT count(*) FROM members GROUP BY seq")]
    assert counts == [200, 202], "the patients and their records; row 40 + place moved for all but the first"


def test_no_id_is_in_the_files_nor_its_plain_hash(scene: Scene) -> None:
    scene.register(patients=["Miller-4711"])
    content = b"".join(scene.files().values())
    assert b"Miller" not in content
    for name in ("Miller-4711", "fedplat/1/patient:Miller-4711"):
        assert hashlib.sha256(name.encode()).digest()[:16] not in content


def test_hashes_depend_on_the_key_and_on_what_they_are_of() -> None:
    key, other = PatientKey(b"a" * 32), PatientKey(b"b" * 32)
    assert key.patient("1") == key.patient(" 1 ") != key.record("1")
    assert key.patient("1") != other.patient("1")


def test_what_cannot_be_read_has_no_roll(scene: Scene) -> None:
    key, path = scene.book.key, scene.folder / "x.csv"
    write_patients(path, [1, "", 3])
    with pytest.raises(DataError, match=r"x\.csv:3"):
        call_the_roll(path, "heart", "pid", key)
    with pytest.raises(DataError, match="'name'"):
        call_the_roll(path, "heart", "name", key)
    path.write_text("")
    with pytest.raises(DataError):
        call_the_roll(path, "heart", "pid", key)
    path.write_text("pid,age\n1\n")
    with pytest.raises(DataError):
        call_the_roll(path, "heart", None, key)


def test_folders(scene: Scene) -> None:
    key, folder = scene.book.key, scene.folder / "given"
    folder.mkdir()
    write_patients(folder / "train.csv", range(5))
    write_patients(folder / "test.csv", range(5, 8))
    roll = call_the_roll(folder, "given", "pid", key)
    assert (roll.num_records, roll.num_patients) == (8, 8)
    images = scene.folder / "images"
    images.mkdir()
    for name in "ab":
        (images / f"{name}.png").write_bytes(name.encode())
    first = call_the_roll(images, "images", None, key)
    (images / "a.png").rename(images / "z.png")
    assert call_the_roll(images, "images", None, key) == first
    assert (first.num_records, first.num_patients) == (2, None)
