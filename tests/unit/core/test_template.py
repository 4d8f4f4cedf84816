"""`run init`: the template explains every key, runs as it is, and fits the columns of a file."""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sklearn.datasets import load_breast_cancer

from fedplat.errors import DataError, FedplatError, SpecError
from fedplat.spec import RunSpec, TabularOptions, parse_spec
from fedplat.spec.template import toml_string, write_template

COLUMN_NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\u202a\u202b\u202c\u202d\u202e"),
    min_size=1,
    max_size=20,
).map(str.strip)


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def options_of(text: str) -> TabularOptions:
    return TabularOptions.model_validate(parse_spec(text).task.options)


def all_fields(model: type[BaseModel]) -> Iterator[str]:
    """The names of all fields of `model` and of the models in it."""
    for name, info in model.model_fields.items():
        yield name
        pending: list[Any] = [info.annotation]
        while pending:
            annotation = pending.pop()
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from all_fields(annotation)
            pending.extend(get_args(annotation))


@pytest.mark.parametrize("model", [RunSpec, TabularOptions])
def test_every_key_is_explained(model: type[BaseModel]) -> None:
    text = write_template("tabular")
    for name in set(all_fields(model)):
        assert re.search(rf"(^|[{{# ]){name} =|\[{name}\]|\.{name}\]", text, re.MULTILINE), name


def test_commented_keys_are_keys() -> None:
    """Each `# key = value` is accepted where it stands, under a strategy that has it."""
    text = write_template("tabular")
    for strategy, option in [("fedprox", "proximal_mu"), ("fedavgm", "momentum"), ("fedadam", "tau")]:
        changed = text.replace('"fedavg" ', f'"{strategy}" ').replace(f"# {option} =", f"{option} =")
        assert getattr(parse_spec(changed).strategy, option) > 0
    steps = text.replace("epochs = 1 ", "# epochs = 1 ").replace("# steps =", "steps =")
    assert parse_spec(steps).training.steps == 100
    clip = text.replace("# gradient_clip", "gradient_clip").replace("# fingerprint", "fingerprint")
    assert parse_spec(clip).training.gradient_clip == 1.0
    assert options_of(text.replace("# patient =", "patient =")).patient == "patient_id"
    named = text.replace("names = []", 'names = ["hospital-a", "hospital-b"]')
    pair = named.replace("min_cohort = 3", "min_cohort = 2").replace("minimum = 3", "minimum = 2")
    declared = pair.replace('"examples"', '"declared"').replace("# weights =", "weights =")
    assert parse_spec(declared).strategy.weights == {"hospital-a": 2.0, "hospital-b": 1.0}


def test_demo_template_fits_the_demo_data() -> None:
    spec = parse_spec(write_template("tabular"))
    options = TabularOptions.model_validate(spec.task.options)
    data = load_breast_cancer()
    assert [f.column for f in options.features] == [str(n).replace(" ", "_") for n in data.feature_names]
    for feature, values in zip(options.features, data.data.T, strict=True):
        scaled = (values - feature.center) / feature.scale  # type: ignore[union-attr]
        assert abs(scaled.mean()) < 0.2
        assert abs(scaled.std() - 1) < 0.1
    assert options.target.categories == ("benign", "malignant")
    assert (spec.data.name, spec.silos.minimum, spec.rounds.count) == ("breast-cancer", 3, 10)
    assert (spec.training.epochs, spec.training.batch_size, spec.training.learning_rate) == (1, 32, 0.1)


def test_other_tasks_get_the_general_part() -> None:
    spec = parse_spec(write_template("my_task"))
    assert spec.task.name == "my_task"
    assert spec.task.options == {}
    with pytest.raises(SpecError, match="has no columns to guess"):
        write_template("my_task", Path("x.csv"))
    with pytest.raises(SpecError, match=r"task\.name: must be letters"):
        write_template("no such task")


def test_kinds_are_inferred(tmp_path: Path) -> None:
    rows = [["Patient ID", "age", "sex", "stage", "note", "lab", "empty", "same", "outcome", "site_id"]]
    for i in range(200):
        lab = ["?", "NA", "NaN", " n/a ", ""][i] if i < 5 else f" {i / 10} "
        gender = "" if i == 7 else "fm"[i % 2]
        years, note = str(20 + i % 60), f"text {i // 2}"
        rows.append([f"p{i}", years, gender, str(i % 4), note, lab, "", "x", ["no", "yes"][i % 2], str(i)])
    text = write_template("tabular", write_csv(tmp_path / "my cohort (2).csv", rows))
    options = options_of(text)
    age, sex, stage, lab_column = options.features
    assert age.model_dump() | {"column": "age", "center": 48.0, "scale": 18.0} == age.model_dump()
    assert sex.kind == "categorical"
    assert (sex.categories, sex.missing) == (("f", "m"), "zeros")
    assert (stage.column, stage.kind) == ("stage", "numeric")
    assert (lab_column.column, lab_column.kind, lab_column.missing) == ("lab", "numeric", "center")
    assert options.target.model_dump()["categories"] == ("no", "yes")
    assert options.patient == "Patient ID"
    assert parse_spec(text).data.name == "my-cohort-2"
    for name in ("note", "empty", "same", "site_id"):
        assert f'# Not used: "{name}"' in text
    assert "few whole numbers" in next(line for line in text.splitlines() if '"stage"' in line)
    assert "some cells are missing" in next(line for line in text.splitlines() if '"lab"' in line)
    assert "medical knowledge rather" in text


def test_text_of_unused_columns_stays_out(tmp_path: Path) -> None:
    rows = [["age", "note", "y"], *([str(i), f"Mrs Miller {i}", str(i % 2)] for i in range(100))]
    assert "Miller" not in write_template("tabular", write_csv(tmp_path / "a.csv", rows))


@pytest.mark.parametrize(
    ("header", "asked", "expected"),
    [
        (["a", "Diagnosis", "b"], None, "Diagnosis"),
        (["y", "a", "label"], None, "label"),
        (["a", "b", "c"], None, "c"),
        (["a", "b", "target"], "a", "a"),
    ],
)
def test_target(header: list[str], asked: str | None, expected: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [header, *([str(i % 2)] * 3 for i in range(20))])
    options = options_of(write_template("tabular", path, target=asked))
    assert options.target.column == expected
    assert options.target.categories == ("0", "1")


def test_numeric_target_is_a_regression(tmp_path: Path) -> None:
    values = np.arange(50) * 1.5
    path = write_csv(tmp_path / "a.csv", [["x", "days"], *([str(v * 2), str(v)] for v in values)])
    target = options_of(write_template("tabular", path)).target
    assert target.num_classes == 0
    assert (target.center, target.scale) == (float(f"{values.mean():.2g}"), float(f"{values.std():.2g}"))


def test_codes_are_sorted_as_numbers(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [["x", "y"], *([str(i), str(8 + i % 3)] for i in range(30))])
    assert options_of(write_template("tabular", path)).target.categories == ("8", "9", "10")


def test_distinct_texts_are_only_suggested_as_key(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [["code", "x", "y"], *([f"k{i}", str(i), str(i % 2)] for i in range(9))])
    text = write_template("tabular", path)
    assert '# patient = "code"' in text
    assert options_of(text).patient is None


def test_byte_order_mark_quotes_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf"a, b",y\r\n\r\n1,0\r\n"2",1\r\n')
    assert options_of(write_template("tabular", path)).columns == ("a, b", "y")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no header"),
        (b"a,b\n", "has a header and no records"),
        (b"1.5,2,M\n1,2,M\n", "its first line holds numbers"),
        (b"a,b,a\n1,2,3\n", "two columns are called 'a'"),
        (b"a,,c\n1,2,3\n", "column 2 has no name"),
        (b"a;b;c\n1;2;3\n", "has only one column"),
        (b"a,b\n1,2\n1\n", "record 2 has 1 cells, but the header has 2"),
        (b"a,b\n\xff,2\n", "not UTF-8"),
        (b'a,b\n"1,2\n', "line 2: unexpected end of data"),
        (b"a,b\n1,x\n2,x\n", "'b' cannot be the target"),
        (b"a,b\nx,1\nx,2\n", "no column can be used as a feature"),
        (b"a\tc,b\n1,1\n2,2\n", "must be text without control characters"),
    ],
)
def test_unusable_files(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(FedplatError) as caught:
        write_template("tabular", path)
    assert said in caught.value.message
    assert caught.value.hint
    assert str(path) in caught.value.message


def test_missing_file_and_target(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        write_template("tabular", tmp_path / "none.csv")
    path = write_csv(tmp_path / "a.csv", [["age", "outcome"], ["1", "0"], ["2", "1"]])
    with pytest.raises(SpecError) as caught:
        write_template("tabular", path, target="outcom")
    assert "did you mean 'outcome'" in caught.value.hint


@settings(deadline=None)
@given(st.text())
def test_strings_survive_toml(text: str) -> None:
    assert tomllib.loads(f"a = {toml_string(text)} # {toml_string(text)}") == {"a": text}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(COLUMN_NAMES.filter(bool), min_size=3, max_size=6, unique=True), st.text(min_size=1, max_size=9))
def test_nasty_names_survive(tmp_path: Path, names: list[str], category: str) -> None:
    names = [f"x{name}z" for name in names]  # neither a number nor an identifier
    category = f"c {category}".strip()
    rows = [names, *([str(i), [category, "b"][i % 2], str(i % 2)] + ["0"] * (len(names) - 3) for i in range(12))]
    options = options_of(write_template("tabular", write_csv(tmp_path / "a.csv", rows), target=names[2]))
    assert [f.column for f in options.features] == [n for n in names if n != names[2]]
    assert set(options.features[1].model_dump()["categories"]) == {category, "b"}


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=30))
def test_center_and_scale_are_mean_and_deviation(values: list[float]) -> None:
    from fedplat.spec.infer import Column

    column = Column("x")
    for value in values:
        column.add(repr(value))
    assert column.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-3)
    assert column.scale > 0
    if np.std(values) > 1:
        assert column.scale == pytest.approx(np.std(values), rel=0.06)
