"""The tabular task: encoding by the schema, refusals by name, metrics as scikit-learn has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from fedplat.metrics import summarise
from fedplat.reasons import Code
from fedplat.spec.model import RunSpec
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.source import DataSource
from fedplat_silo.tasks.tabular import Tabular

MakeSpec = Callable[..., RunSpec]
Write = Callable[..., Path]
MISSING = """
  {{ column = "age", kind = "numeric", center = 50, scale = 10, missing = {number} }},
  {{ column = "sex", kind = "categorical", categories = ["f", "m"], missing = "{category}" }},
"""


def load(spec: RunSpec, path: Path) -> tuple[Tensor, Tensor]:
    data = Tabular(spec).load(DataSource(path, spec.data))
    return data.train.fetch(torch.arange(len(data.train)))


def test_declared_scaling_one_hot_and_classes(make_spec: MakeSpec, csv: Write) -> None:
    inputs, targets = load(make_spec(), csv("ill,sex,age\nyes,m,60\nno,f,45.5\n"))
    assert inputs.tolist() == [[1.0, 0.0, 1.0], [pytest.approx(-0.45), 1.0, 0.0]]
    assert targets.tolist() == [1, 0]


def test_ranges_clip_drop_first_and_integral_floats(make_spec: MakeSpec, csv: Write) -> None:
    features = """
      { column = "age", kind = "numeric", range = [0, 100] },
      { column = "stage", kind = "categorical", categories = ["1", "2", "3"], drop_first = true },
    """
    path = csv("age,stage,ill\n50,1.0,yes\n250,2,no\n0,3.0,no\n")
    inputs, _ = load(make_spec(features), path)
    assert inputs.tolist() == [[0, 0, 0], [1, 1, 0], [-1, 0, 1]]


def test_local_scaling_is_of_the_training_part(make_spec: MakeSpec, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("age,sex,ill\n40,f,no\n60,m,yes\n,m,no\n")
    (tmp_path / "test.csv").write_text("age,sex,ill\n70,f,no\n")
    spec = make_spec(
        MISSING.format(number='"center"', category="refuse"), options='scaling = "local"', data='split = "given"'
    )
    data = Tabular(spec).load(DataSource(tmp_path, spec.data))
    assert data.train.fetch(torch.arange(3))[0][:, 0].tolist() == [-1.0, 1.0, 0.0]
    assert data.test.fetch(torch.arange(1))[0][:, 0].tolist() == [2.0]


def test_missing_values_by_rule(make_spec: MakeSpec, csv: Write) -> None:
    path = csv("age,sex,ill\n?,f,no\nNA,,yes\n")
    inputs, _ = load(make_spec(MISSING.format(number=70, category="zeros")), path)
    assert inputs.tolist() == [[2, 1, 0], [2, 0, 0]]
    inputs, _ = load(make_spec(MISSING.format(number='"center"', category="zeros")), path)
    assert inputs.tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("row", "code", "column"),
    [
        ("sixty,f,no", Code.NUMBER_INVALID, "age"),
        ("inf,f,no", Code.NUMBER_INVALID, "age"),
        ("1_0,f,no", Code.NUMBER_INVALID, "age"),
        ('"1,5",f,no', Code.NUMBER_INVALID, "age"),
        ("nan,f,no", Code.VALUE_MISSING, "age"),
        ("60,?,no", Code.VALUE_MISSING, "sex"),
        ("60,secret,no", Code.CATEGORY_UNKNOWN, "sex"),
        ("60,f,secret", Code.TARGET_UNKNOWN, "ill"),
        ("60,f,", Code.VALUE_MISSING, "ill"),
    ],
)
def test_bad_cells_are_refused_by_column(make_spec: MakeSpec, csv: Write, row: str, code: Code, column: str) -> None:
    path = csv(f"age,sex,ill\n50,m,yes\n{row}\n")
    with pytest.raises(Refused) as refusal:
        load(make_spec(), path)
    assert refusal.value.reason.code is code
    assert refusal.value.reason.words == {"column": column}
    assert f"{path}:3" in refusal.value.message


def test_a_category_may_be_called_na(make_spec: MakeSpec, csv: Write) -> None:
    features = '{ column = "area", kind = "categorical", categories = ["NA", "EU"] }'
    inputs, _ = load(make_spec(features), csv("area,ill\nNA,no\nEU,yes\n"))
    assert inputs.tolist() == [[1, 0], [0, 1]]


def test_warnings(make_spec: MakeSpec, csv: Write) -> None:
    spec = make_spec(options='scaling = "local"')
    data = Tabular(spec).load(DataSource(csv("age,sex,ill\n50,f,no\n50,m,no\n"), spec.data))
    assert [w.code for w in data.warnings] == [Code.CONSTANT_COLUMN, Code.ONE_CLASS]
    assert data.train.fetch(torch.arange(2))[0][:, 0].tolist() == [0.0, 0.0]


def test_class_weights_must_fit(make_spec: MakeSpec, csv: Write) -> None:
    spec = make_spec(training="epochs = 1\nclass_weights = [1.0, 4.0]")
    data = Tabular(spec).load(DataSource(csv("age,sex,ill\n50,f,no\n50,m,yes\n"), spec.data))
    assert data.train.weights.tolist() == [1.0, 4.0]
    three = spec.training.model_copy(update={"class_weights": (1.0, 4.0, 2.0)})
    with pytest.raises(Refused) as refusal:
        Tabular(spec.model_copy(update={"training": three}))
    assert refusal.value.reason.code is Code.TASK_OPTIONS


@pytest.mark.parametrize("num_classes", [2, 3])
def test_sums_of_parts_equal_pooled_metrics(make_spec: MakeSpec, num_classes: int) -> None:
    categories = ["no", "yes", "maybe"][:num_classes]
    task = Tabular(make_spec(target=f'column = "ill", categories = {categories}'))
    torch.manual_seed(0)
    inputs, targets = torch.randn(500, 3), torch.randint(0, num_classes, (500,))
    model = task.build_model()
    with torch.no_grad():
        whole, losses = task.loss(model, inputs, targets)
        parts = [task.sums(whole[i], targets[i], losses[i]) for i in (slice(0, 0), slice(0, 77), slice(77, 500))]
    figures = summarise(parts[0] + parts[1] + parts[2])
    logits = whole if num_classes > 2 else torch.stack([torch.zeros(500), whole], dim=1)
    probabilities = logits.softmax(1).numpy()
    predicted, average = probabilities.argmax(1), "macro" if num_classes > 2 else "binary"
    expected = {
        "loss": reference.log_loss(targets, probabilities),
        "accuracy": reference.accuracy_score(targets, predicted),
        "precision": reference.precision_score(targets, predicted, average=average),
        "recall": reference.recall_score(targets, predicted, average=average),
        "f1": reference.f1_score(targets, predicted, average=average),
    }
    assert {k: figures[k] for k in expected} == pytest.approx(expected, rel=1e-5)
    if num_classes == 2:
        auroc = reference.roc_auc_score(targets, probabilities[:, 1])
        assert abs(figures["auroc"] - auroc) <= figures["auroc_bound"] + 1e-12


def test_regression_metrics_are_in_the_targets_unit(make_spec: MakeSpec, csv: Write) -> None:
    spec = make_spec(target='column = "stay", center = 10, scale = 5')
    task = Tabular(spec)
    inputs, targets = load(spec, csv("age,sex,stay\n50,f,20\n40,m,5\n60,m,9\n"))
    assert targets.tolist() == pytest.approx([2.0, -1.0, -0.2])
    with torch.no_grad():
        outputs, losses = task.loss(task.build_model(), inputs, targets)
    figures = summarise(task.sums(outputs, targets, losses))
    predicted, true = outputs.double().numpy() * 5 + 10, np.array([20.0, 5.0, 9.0])
    assert figures["mae"] == pytest.approx(reference.mean_absolute_error(true, predicted))
    assert figures["rmse"] == pytest.approx(reference.root_mean_squared_error(true, predicted))
    assert figures["r2"] == pytest.approx(reference.r2_score(true, predicted))
