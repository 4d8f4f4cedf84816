"""Files as hospitals have them: quotes, BOM, CRLF, Parquet; and what is wrong with some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedplat.reasons import Code
from fedplat.spec.model import DataSection, Split
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.source import DataSource
from fedplat_silo.data.tables import read_table

Write = Callable[..., Path]
SECTION = DataSection(name="clinic", test_share=0.3)


def test_quotes_bom_crlf_and_blank_lines(csv: Write) -> None:
    path = csv('\ufeffage,"note, long",sex\r\n61,"said ""no"",\r\ntwice",f\r\n\r\n 62 ,x,m\r\n')
    table = read_table(path, ("sex", "age", "note, long"), "clinic")
    assert table.cells == {
        "sex": ["f", "m"],
        "age": ["61", "62"],
        "note, long": ['said "no",\r\ntwice', "x"],
    }
    assert [table.at(0), table.at(1)] == [f"{path}:3", f"{path}:5"]


def test_parquet_gives_the_same_cells(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {"age": [61, None], "bmi": [20.5, float("nan")], "sex": ["f", None], "other": [1, 2]}
    pq.write_table(pa.table(columns), path)
    table = read_table(path, ("age", "bmi", "sex"), "clinic")
    assert table.cells == {"age": ["61", ""], "bmi": ["20.5", ""], "sex": ["f", ""]}


@pytest.mark.parametrize(
    ("text", "code", "log"),
    [
        ("age\n1\n", Code.COLUMN_MISSING, "['age']"),
        ("", Code.COLUMN_MISSING, "[]"),
        ("age,sex\n1\n", Code.DATASET_UNREADABLE, "record 1 has 1 cells"),
        ("age,sex,sex\n1,f,f\n", Code.DATASET_UNREADABLE, "two columns"),
        ('age,sex\n1,"f\n', Code.DATASET_UNREADABLE, "unexpected end"),
    ],
)
def test_bad_files_are_refused(csv: Write, text: str, code: Code, log: str) -> None:
    with pytest.raises(Refused) as refusal:
        read_table(csv(text), ("age", "sex"), "clinic")
    assert refusal.value.reason.code is code
    assert log in refusal.value.message
    assert set(refusal.value.reason.words.values()) <= {"clinic", "sex", "age"}


@pytest.mark.parametrize("name", ["none.csv", "clinic.xlsx", "latin.csv", "broken.parquet"])
def test_unreadable_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "latin.csv").write_bytes("age\nMüller\n".encode("latin-1"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(Refused) as refusal:
        read_table(tmp_path / name, ("age",), "clinic")
    assert refusal.value.reason.words == {"dataset": "clinic"}
    assert str(tmp_path / name) in refusal.value.message


def rows(source: DataSource) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    tables = source.tables(("id", "x"), None)
    train, test = (set(zip(t.cells["id"], t.cells["x"], strict=True)) for t in tables)
    return train, test


def test_hash_split_ignores_order_and_keeps_twins_together(csv: Write) -> None:
    records = [f"{i % 150},{i % 150}" for i in range(300)]  # each one twice
    train, test = rows(DataSource(csv("id,x\n" + "\n".join(records)), SECTION))
    shuffled = rows(DataSource(csv("id,x\n" + "\n".join(reversed(records)), "b.csv"), SECTION))
    other = rows(DataSource(csv("id,x\n" + "\n".join(records), "c.csv"), SECTION.model_copy(update={"split_seed": 1})))
    assert (train, test) == shuffled
    assert (train, test) != other
    assert not train & test
    assert 30 < len(test) < 60


def test_all_cells_of_a_record_count(csv: Write) -> None:
    train, test = rows(DataSource(csv("id,x\n" + "\n".join(f"1,{i}" for i in range(100))), SECTION))
    assert len(train) > 50
    assert len(test) > 10


def test_a_patient_is_on_one_side(csv: Write) -> None:
    path = csv("id,x\n" + "\n".join(f"{i % 40},{i}" for i in range(400)))
    train, test = DataSource(path, DataSection(name="c", test_share=0.4)).tables(("x", "id"), "id")
    assert not set(train.cells["id"]) & set(test.cells["id"])
    assert len(train) + len(test) == 400
    with pytest.raises(Refused) as refusal:
        DataSource(csv("id,x\n,1\n"), DataSection(name="c")).tables(("x", "id"), "id")
    assert refusal.value.reason.code is Code.VALUE_MISSING


def test_given_split_takes_the_files_as_they_are(csv: Write, tmp_path: Path) -> None:
    source = DataSource(tmp_path, DataSection(name="c", split=Split.GIVEN))
    with pytest.raises(Refused, match=r"train\.csv or train\.parquet"):
        source.tables(("x",))
    csv("x\n1\n2\n", "train.csv")
    pq.write_table(pa.table({"x": [3]}), tmp_path / "test.parquet")
    train, test = source.tables(("x",))
    assert (train.cells["x"], test.cells["x"]) == (["1", "2"], ["3"])


@pytest.mark.parametrize(("share", "text", "part"), [(0.0, "x\n", "training"), (0.0001, "x\n1\n", "test")])
def test_an_empty_part_is_refused(csv: Write, share: float, text: str, part: str) -> None:
    with pytest.raises(Refused) as refusal:
        DataSource(csv(text), DataSection(name="c", test_share=share)).tables(("x",))
    assert refusal.value.reason.code is Code.DATASET_EMPTY
    assert refusal.value.reason.words == {"dataset": "c", "part": part}
