"""Run specs: what is accepted, what is refused in which words, and what the hash depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedplat.errors import SpecError
from fedplat.spec import Numeric, RunSpec, TabularOptions, load_spec, parse_spec

SPEC = """
name = "study"
[task]
name = "tabular"
[task.options]
target = {column = "y", categories = ["a", "b"]}
features = [{column = "x", kind = "numeric"}, {column = "s", kind = "categorical", categories = ["f", "m"]}]
[data]
name = "d"
[rounds]
count = 3
[training]
epochs = 1
"""
PINNED_HASH = "9f01cda5cf8a1c27e52116c6eb4ef9de8d6ee80316f0f54b69137c590816d43b"


def problem(text: str) -> str:
    """The message with which `text` is refused."""
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert caught.value.hint
    return caught.value.message


def swap(old: str, new: str) -> str:
    assert SPEC.count(old) == 1, old
    return SPEC.replace(old, new)


def test_defaults_are_written_out() -> None:
    spec = parse_spec(SPEC)
    assert spec.silos.minimum == 1
    assert spec.strategy.name == "fedavg"
    assert spec.task.options["features"][0] == {  # type: ignore[index]
        "column": "x",
        "kind": "numeric",
        "center": 0.0,
        "scale": 1.0,
        "missing": "refuse",
    }


def test_hash_is_pinned() -> None:
    assert parse_spec(SPEC).hash == PINNED_HASH


def test_hash_ignores_order_and_formatting() -> None:
    other = """
    training.epochs = 1   # the same, written differently
    rounds.count = 3
    name = 'study'
    data = {name = "d", split = "hash", test_share = 0.2}
    [task]
    options.features = [
      {kind = "numeric", scale = 1, column = "x", center = 0},
      {column = "s", categories = ["f", "m"], kind = "categorical"},
    ]
    options.target = {categories = ["a", "b"], column = "y"}
    name = "tabular"
    """
    assert parse_spec(other).canonical() == parse_spec(SPEC).canonical()
    assert parse_spec(other).hash == PINNED_HASH


def test_hash_follows_every_change() -> None:
    changed = [swap("count = 3", "count = 4"), swap('["f", "m"]', '["m", "f"]'), "seed = 1\n" + SPEC]
    assert len({PINNED_HASH, *(parse_spec(text).hash for text in changed)}) == 4


def test_hash_follows_a_copy() -> None:
    spec = parse_spec(SPEC)
    assert spec.hash == PINNED_HASH
    assert spec.model_copy(update={"seed": 1}).hash != PINNED_HASH


def test_canonical_text_reads_back_to_the_same_spec() -> None:
    spec = parse_spec(SPEC)
    again = RunSpec.model_validate_json(spec.canonical())
    assert again == spec
    assert again.hash == spec.hash
    assert json.loads(spec.canonical())["data"]["test_share"] == 0.2


@pytest.mark.parametrize(
    ("text", "where", "nearest"),
    [
        ("sed = 1\n" + SPEC, "sed", "seed"),
        (swap("count = 3", "count = 3\ntimeout = 5"), "rounds.timeout", "timeout_s"),
        (swap("epochs = 1", "epochs = 1\nlerning_rate = 1"), "training.lerning_rate", "learning_rate"),
        (swap("target =", "modle = 1\ntarget ="), "task.options.modle", "model"),
        (swap('"y",', '"y", catgories = [],'), "task.options.target.catgories", "categories"),
        (
            swap('kind = "numeric"', 'kind = "numeric", centre = 1'),
            "task.options.features[0].centre (column 'x')",
            "center",
        ),
        (
            swap('kind = "categorical"', 'kind = "categorical", dropfirst = true'),
            "task.options.features[1].dropfirst (column 's')",
            "drop_first",
        ),
    ],
)
def test_unknown_key_names_the_nearest(text: str, where: str, nearest: str) -> None:
    assert problem(text) == f"run spec: {where}: no such key; did you mean {nearest!r}?"


def test_unknown_key_like_none_other_lists_the_known() -> None:
    said = problem(SPEC.replace("epochs = 1", "epochs = 1\n[evaluation]\nqqq = 1"))
    assert said == "run spec: evaluation.qqq: no such key; known here: every"


def test_suggestions_stay_with_the_kind_of_the_feature() -> None:
    said = problem(swap('kind = "numeric"', 'kind = "numeric", category = 1'))
    assert "categories" not in said


@pytest.mark.parametrize("name", ["numeric", "categorical"])
def test_key_named_like_a_tag(name: str) -> None:
    assert problem(f"{name} = 1\n{SPEC}").startswith(f"run spec: {name}: no such key")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (swap("count = 3", "count = 0"), "rounds.count: should be greater than or equal to 1 (given: 0)"),
        (swap("count = 3", "count = nan"), "rounds.count: should be a finite number (given: nan)"),
        (swap("count = 3", ""), "rounds.count: missing"),
        (swap("count = 3", "count = 1\ntimeout_s = 0"), "rounds.timeout_s: should be greater than 0 (given: 0)"),
        (swap("count = 3", "count = 1\ntimeout_s = 1e300"), "less than or equal to 100000000 (given: 1e+300)"),
        (swap('"study"', '"a study"'), "name: must be letters, digits, '_', '-' and '.', at most 63"),
        (swap('"study"', '"../x"'), "name: must be letters, digits"),
        (swap("[rounds]\ncount = 3\n", "").replace('"study"', '"s"\nrounds = 3'), "rounds: must be a section"),
        (swap("epochs = 1", "epochs = 1\nsteps = 1"), "training: give either epochs or steps"),
        (swap("epochs = 1", ""), "training: give either epochs or steps"),
        (swap("epochs = 1", 'epochs = 1\noptimizer = "sdg"'), "optimizer: should be 'sgd', 'adam' or 'adamw' (g"),
        (
            swap("epochs = 1", 'epochs = 1\noptimizer = "adam"\nmomentum = 0.9'),
            "training: momentum belongs to sgd, not to adam",
        ),
        (swap("epochs = 1", "epochs = 1\nclass_weights = [1, 2, 3]"), "3 weights, but the target has 2 categories"),
        (SPEC + '[silos]\nnames = ["a", "a"]', "silos: a silo is named twice"),
        (SPEC + '[silos]\nminimum = 2\nnames = ["a"]', "silos: minimum is 2, but only 1 silos are named"),
        (SPEC + '[silos]\nnames = ["A"]', "silos.names[0]: must be lower-case letters, digits and '-'"),
        (SPEC + "[strategy]\nmomentum = 0.1", "strategy: fedavg has no option 'momentum'; it takes no options"),
        (SPEC + '[strategy]\nname = "fedavgm"\ntau = 1', "it takes learning_rate, momentum"),
        (SPEC + '[model]\nfingerprint = "abc"', "model.fingerprint: must be a SHA-256 in hexadecimal, or empty"),
        (swap('{column = "x", kind', '{column = "y", kind'), "task.options: column 'y' has two roles"),
        (swap("target =", 'patient = "s"\ntarget ='), "task.options: column 's' has two roles"),
        (swap("target =", 'model = "mlp"\ntarget ='), "an mlp needs hidden = [sizes]"),
        (swap("target =", "hidden = [3]\ntarget ="), "a logistic model has none"),
        (swap('["a", "b"]', '["a"]'), "target 'y': give two or more distinct categories, or none"),
        (swap('["f", "m"]', '["f", "f"]'), "a category is listed twice"),
        (swap('["f", "m"]', '["f"]'), "features[1].categories (column 's'): list should have at least 2 items"),
        (swap(', kind = "numeric"', ""), "features[0] (column 'x'): kind must be 'numeric' or 'categorical'"),
        (swap('"numeric"', '"numbre"'), "features[0] (column 'x'): kind must be 'numeric' or 'categorical'"),
        (
            swap('"numeric"', '"numeric", missing = "zeros"'),
            "features[0].missing (column 'x'): should be 'refuse' or 'center', or should be a valid number (given: ",
        ),
        (swap('"numeric"', '"numeric", scale = 0'), "features[0].scale (column 'x'): should be greater than 0"),
        (swap('"numeric"', '"numeric", range = [2, 1]'), "column 'x': the range must go upwards"),
        (swap('"numeric"', '"numeric", range = [1, 2], scale = 2'), "give a range, or center and scale, not both"),
        (swap('column = "x"', 'column = "x\\n"'), "must be text without control characters or line breaks"),
        (swap('column = "x"', 'column = "\\u202ex"'), "must be text without control characters"),
        ("", "\n  name: missing\n  task: missing\n  data: missing\n  rounds: missing\n  training: missing"),
        ("a = ", "is not TOML: Invalid value (at end of document)"),
        ("a = " + "9" * 5000, "is not TOML: "),
        ("a = " + "[" * 20_000, "is not TOML: "),
    ],
)
def test_refused_in_words(text: str, said: str) -> None:
    assert said in problem(text)


def test_bad_features_do_not_also_count_as_too_few() -> None:
    text = swap('{column = "s", kind = "categorical", categories = ["f", "m"]}', "")
    assert "at least" not in problem(text.replace('kind = "numeric"', 'kind = "numeric", scale = 0'))


def test_a_thousand_problems_stay_readable() -> None:
    features = ", ".join(f'{{column = "c{i}", kind = "numeric", scale = 0}}' for i in range(1000))
    said = problem(SPEC.split("features =")[0] + f"features = [{features}]\n[data]" + SPEC.split("[data]")[1])
    assert len(said.splitlines()) < 25
    assert "and 980 more" in said


@pytest.mark.parametrize("value", ["nan", "inf", "1979-05-27"])
def test_options_of_unknown_tasks_are_plain_json(value: str) -> None:
    text = swap('"tabular"', '"other"').replace("target =", f"knob = {value}\ntarget =")
    assert "task.options.knob: " in problem(text)


def test_options_of_unknown_tasks_are_left_alone() -> None:
    spec = parse_spec(swap('"tabular"', '"other"').replace("target =", "deep = {any = [1, {x = true}]}\ntarget ="))
    assert spec.task.options["deep"] == {"any": [1, {"x": True}]}


def test_many_columns_are_checked_quickly() -> None:
    features = [{"column": f"c{i}", "kind": "numeric"} for i in range(50_000)]
    options = TabularOptions.model_validate({"target": {"column": "y"}, "features": features})
    assert len(options.columns) == 50_001


def test_range_gives_center_and_scale() -> None:
    assert Numeric(column="age", range=(20, 80)).center_scale == (50, 30)
    assert Numeric(column="age", center=3, scale=2).center_scale == (3, 2)


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse_spec(SPEC).seed = 3  # type: ignore[misc]


def test_load_spec_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    with pytest.raises(SpecError, match=r"study\.toml: No such file"):
        load_spec(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="not UTF-8"):
        load_spec(path)
    path.write_text("sed = 1\n" + SPEC)
    with pytest.raises(SpecError, match=r"study\.toml: sed: no such key; did you mean 'seed'"):
        load_spec(path)
    path.write_text(SPEC)
    assert load_spec(path) == parse_spec(SPEC)
