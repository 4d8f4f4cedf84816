"""The built-in task for tables: a logistic (linear) model or an MLP; binary, multi-class or regression."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedplat.metrics import MetricSums
from fedplat.reasons import Code, Reason
from fedplat.spec.model import RunSpec
from fedplat.spec.tabular import Categorical, Numeric, TabularOptions
from fedplat_silo.data import encode
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.examples import Datasets, TensorExamples
from fedplat_silo.data.source import DataSource
from fedplat_silo.data.tables import Table
from fedplat_silo.tasks.base import Task


class Tabular(Task[TabularOptions]):
    """Losses, per record: cross entropy in nats (binary: of one logit), or the squared error of the scaled target.

    `training.class_weights` weigh the training loss; losses in the metrics are unweighted.
    """

    options_type = TabularOptions

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self.num_classes = self.options.target.num_classes
        weights = spec.training.class_weights
        if weights and len(weights) != self.num_classes:
            detail = f"{len(weights)} class_weights for a target of {self.num_classes} classes"
            raise Refused(Reason.of(Code.TASK_OPTIONS, task=spec.task.name), detail)

    def build_model(self) -> nn.Module:
        """Linear layers with ReLU between them."""
        num_outputs = self.num_classes if self.num_classes > 2 else 1
        sizes = (_width(self.options), *self.options.hidden, num_outputs)
        layers: list[nn.Module] = []
        for num_in, num_out in pairwise(sizes):
            layers += [nn.Linear(num_in, num_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def load(self, source: DataSource) -> Datasets:
        """Reads the table and encodes both parts; local scaling uses the training part only."""
        tables = source.tables(self.options.columns, self.options.patient)
        columns = [self._encode(feature, tables) for feature in self.options.features]
        warnings = [warning for _, _, found in columns for warning in found]
        train, test = (
            self._examples(table, np.concatenate([column[part] for column in columns], axis=1))
            for part, table in enumerate(tables)
        )
        if self.num_classes and bool((train.targets == train.targets[0]).all()):
            warnings.append(Reason.of(Code.ONE_CLASS, column=self.options.target.column))
        return Datasets(train, test, tuple(warnings))

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs are logits (binary: n, multi-class: n x C) or scaled predictions (n)."""
        outputs: Tensor = model(inputs)
        if self.num_classes > 2:
            return outputs, functional.cross_entropy(outputs, targets, reduction="none")
        outputs = outputs.squeeze(1)
        if self.num_classes:
            losses = functional.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="none")
        else:
            losses = functional.mse_loss(outputs, targets, reduction="none")
        return outputs, losses

    def sums(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> MetricSums:
        """Of classes, or of values in the target's own unit."""
        if not self.num_classes:
            center, scale = self.options.target.center, self.options.target.scale
            predicted, true = (t.double().numpy() * scale + center for t in (outputs, targets))
            return MetricSums.of_values(predicted, true, losses.numpy())
        scores = outputs.double().softmax(1) if self.num_classes > 2 else outputs.double().sigmoid()
        return MetricSums.of_classes(scores.numpy(), targets.numpy(), losses.numpy())

    def _encode(
        self, feature: Numeric | Categorical, tables: tuple[Table, Table]
    ) -> tuple[encode.Floats, encode.Floats, list[Reason]]:
        """A feature's columns in the training and the test part, and what is odd about them."""
        if isinstance(feature, Categorical):
            return encode.one_hot(tables[0], feature), encode.one_hot(tables[1], feature), []
        train, test = (encode.numbers(table, feature) for table in tables)
        if self.options.scaling == "declared":
            center, scale = feature.center_scale
            limit = 1.0 if feature.range else np.inf
            warnings = []
        else:
            center, scale, constant = _moments(train)
            limit = np.inf
            warnings = [Reason.of(Code.CONSTANT_COLUMN, column=feature.column)] if constant else []
        scaled = (np.clip((x - center) / scale, -limit, limit) for x in (train, test))
        first, second = (np.nan_to_num(x)[:, np.newaxis] for x in scaled)
        return first, second, warnings

    def _examples(self, table: Table, inputs: encode.Floats) -> TensorExamples:
        target, features = self.options.target, torch.from_numpy(inputs).float()
        patients = self._patients(table)
        if not self.num_classes:
            scaled = (encode.values(table, target) - target.center) / target.scale
            return TensorExamples(features, torch.from_numpy(scaled).float(), patients=patients)
        targets = torch.from_numpy(encode.classes(table, target))
        class_weights = self.spec.training.class_weights
        weights = torch.tensor(class_weights)[targets] if class_weights else None
        return TensorExamples(features, targets, weights, patients)

    def _patients(self, table: Table) -> Tensor | None:
        if self.options.patient is None:
            return None
        numbers: dict[str, int] = {}
        keys = table.cells[self.options.patient]
        return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.int64)


def _width(options: TabularOptions) -> int:
    return sum(
        len(f.categories) - f.drop_first if isinstance(f, Categorical) else 1  # one-hot, or the number itself
        for f in options.features
    )


def _moments(column: encode.Floats) -> tuple[float, float, bool]:
    """(mean, standard deviation with divisor n, whether it is constant) of the values that are there."""
    known = column[~np.isnan(column)]
    if not known.size or known.min() == known.max():
        return float(known[0]) if known.size else 0.0, 1.0, True
    return float(known.mean()), float(known.std()), False
