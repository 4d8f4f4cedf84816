"""Four hospitals' heart data (UCI, 920 patients) as datasets of silos, specs that train on it, and a check in numpy.

The protocol is that of FLamby (Ogier du Terrail et al. 2022): attributes 1-10, complete records only, 13 inputs, a
third of each hospital for testing, drawn by scikit-learn's `train_test_split` with seed 43.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from sklearn.model_selection import train_test_split

from tests.support.federation import Federation

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
POOLED = "pooled"
DATASET = "heart"
NEAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "heart"

RAW = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")
TARGET = "disease"
LEVELS = {"cp": ("1", "2", "3", "4"), "restecg": ("0", "1", "2")}
DUMMIES = {f"{column}_{level}": (column, level) for column, levels in LEVELS.items() for level in levels[1:]}
DECLARED = {  # centre and scale
    "age": (54, 9),
    "sex": (0.5, 0.5),
    "trestbps": (130, 18),
    "chol": (220, 60),
    "fbs": (0.5, 0.5),
    "thalach": (140, 25),
    "exang": (0.5, 0.5),
    "oldpeak": (1, 1),
}

Row = dict[str, str]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Method:
    """A way to train: `silos` learn together, by lines of [strategy] and with a local learning rate; `precision`: in
    which weights and updates travel; `masked`: by secure aggregation; `epsilon`: of each silo, at delta 1e-3."""

    silos: tuple[str, ...] = HOSPITALS
    strategy: str = 'name = "fedavg"'
    learning_rate: float = 0.001
    scaling: str = "local"
    precision: str = "fp32"
    masked: bool = False
    epsilon: float | None = None


# The published constants of the server's optimisers. Flower's FedAdam also corrects the bias of its moments, as the
# published one does not: its steps are 4 to 6 times smaller in 15 rounds, so it has 0.05 in place of 0.01.
_ADAPTIVE = 'name = "{}"\nlearning_rate = {}\ntau = 1e-8'
_BETAS = "\nbeta_1 = 0.9\nbeta_2 = 0.999"
# Training records of each hospital. Private runs declare them as weights, for a weight must not depend on the data.
NUM_TRAIN = {"cleveland": 199, "hungarian": 172, "switzerland": 30, "va": 85}
METHODS = {
    "fedavg": Method(),
    "fedprox": Method(strategy='name = "fedprox"\nproximal_mu = 0.01'),
    "fedadam": Method(strategy=_ADAPTIVE.format("fedadam", 0.05) + _BETAS, learning_rate=0.01),
    "fedyogi": Method(strategy=_ADAPTIVE.format("fedyogi", 0.01) + _BETAS, learning_rate=0.01),
    "fedadagrad": Method(strategy=_ADAPTIVE.format("fedadagrad", 0.01), learning_rate=0.01),
    "declared": Method(learning_rate=0.01, scaling="declared"),
    "fedavg-masked": Method(masked=True),
    "declared-masked": Method(learning_rate=0.01, scaling="declared", masked=True),
    "fedavg-bf16": Method(precision="bf16"),
    "declared-bf16": Method(learning_rate=0.01, scaling="declared", precision="bf16"),
    POOLED: Method(silos=(POOLED,)),
    **{f"{hospital}-alone": Method(silos=(hospital,)) for hospital in HOSPITALS},
    **{
        f"dp_{epsilon:g}": Method(learning_rate=0.01, scaling="declared", epsilon=epsilon) for epsilon in (0.5, 1, 3, 8)
    },
}
PRIVATE = tuple(name for name, method in METHODS.items() if method.epsilon is not None)


def prepare(source: Path, target: Path) -> dict[str, Path]:
    """A folder with train.csv and test.csv for each hospital, and one of all of them together, by name."""
    parts = {hospital: split(read(source / f"processed.{hospital}.data")) for hospital in HOSPITALS}
    trains, tests = zip(*parts.values(), strict=True)
    parts[POOLED] = [row for rows in trains for row in rows], [row for rows in tests for row in rows]
    for name, (train, test) in parts.items():
        write(target / name / "train.csv", train)
        write(target / name / "test.csv", test)
    return {name: target / name for name in parts}


def read(path: Path) -> list[Row]:
    """The records of one hospital that miss nothing: attributes as they are, dummies, and 0 or 1 for the disease."""
    with path.open(encoding="ascii", newline="") as file:
        records = [row for row in csv.reader(file) if row]
    return [_row(cells) for cells in records if "?" not in (*cells[: len(RAW)], cells[-1])]


def _row(cells: list[str]) -> Row:
    row = dict(zip(RAW, cells, strict=False))
    dummies = {name: str(int(float(row[column]) == float(level))) for name, (column, level) in DUMMIES.items()}
    return row | dummies | {TARGET: str(int(float(cells[-1]) > 0))}


def split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """(train, test). Stratified, but where a class has hardly anyone: Switzerland has one healthy person."""
    targets = [row[TARGET] for row in rows]
    strata = targets if min(targets.count("0"), targets.count("1")) > 2 else None
    train, test = train_test_split(rows, train_size=0.66, test_size=0.34, random_state=43, stratify=strata)
    return train, test


def write(path: Path, rows: list[Row]) -> None:
    """A CSV file with a header, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii", newline="") as file:
        writer = csv.DictWriter(file, [*RAW, *DUMMIES, TARGET])
        writer.writeheader()
        writer.writerows(rows)


_WEIGHTS = f"""weighting = "declared"
weights = {{ {", ".join(f"{hospital} = {count}" for hospital, count in NUM_TRAIN.items())} }}"""
PRIVACY = """[privacy]
mode = "record"
metrics = "unprotected"
epsilon = {epsilon}
delta = 1e-3
clip_norm = 1.0
expected_batch_size = 4
"""


def spec(name: str, seed: int) -> str:
    """The run of a method with a seed, as TOML: 15 rounds of 100 batches of 4, tested at the end."""
    method = METHODS[name]
    names = ", ".join(f'"{silo}"' for silo in method.silos)
    features = _declared() if method.scaling == "declared" else _published()
    is_private = method.epsilon is not None
    return f"""
name = "{name}-{seed}"
seed = {seed}
[task]
name = "tabular"
[task.options]
scaling = "{method.scaling}"
target = {{ column = "{TARGET}", categories = ["0", "1"] }}
features = [{", ".join(features)}]
[data]
name = "{DATASET}"
split = "given"
[rounds]
count = 15
[silos]
minimum = {len(method.silos)}
names = [{names}]
wait_s = 600
[strategy]
{method.strategy}
{_WEIGHTS if is_private else 'weighting = "examples"'}
[training]
steps = 100
batch_size = {32 if is_private else 4}
learning_rate = {method.learning_rate}
[transport]
precision = "{method.precision}"
[secure_aggregation]
enabled = {str(method.masked).lower()}
[evaluation]
every = 15
""" + (PRIVACY.format(epsilon=method.epsilon) if is_private else "")


def _published() -> Iterable[str]:
    """All 13 inputs are standardised, dummies too, so they are numbers here."""
    return (f'{{ column = "{column}", kind = "numeric" }}' for column in (*DECLARED, *DUMMIES))


def _declared() -> Iterable[str]:
    for column, (center, scale) in DECLARED.items():
        yield f'{{ column = "{column}", kind = "numeric", center = {center}, scale = {scale} }}'
    for column, levels in LEVELS.items():
        yield f'{{ column = "{column}", kind = "categorical", categories = {list(levels)}, drop_first = true }}'


def accuracy(exported: Path, test: Path, *, train: Path | None = None) -> float:
    """That of an exported logistic model on a CSV file, by the constants in preprocessing.json and plain numpy.

    `train`: where the mean and standard deviation of each column come from if the run scaled locally.
    """
    schema = json.loads((exported / "preprocessing.json").read_text(encoding="utf-8"))
    moments = _columns(train) if train else None
    columns = _columns(test)
    inputs = np.stack([x for feature in schema["features"] for x in _inputs(feature, columns, moments)], axis=1)
    model: dict[str, npt.NDArray[np.float32]] = load_file(exported / "model.safetensors")
    predicted = inputs @ model["0.weight"][0] + model["0.bias"][0] >= 0
    return float((predicted == columns[schema["target"]["column"]]).mean())


def _columns(path: Path) -> dict[str, Floats]:
    with path.open(encoding="ascii", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def _inputs(
    feature: Mapping[str, Any], columns: Mapping[str, Floats], moments: Mapping[str, Floats] | None
) -> list[Floats]:
    column = feature["column"]
    values = columns[column]
    if feature.get("kind") == "categorical":
        return [(values == float(level)).astype(np.float64) for level in feature["categories"][feature["drop_first"] :]]
    if moments is None:
        return [(values - feature["center"]) / feature["scale"]]
    return [(values - moments[column].mean()) / (moments[column].std() or 1.0)]


def join_hospitals(fed: Federation, folders: Mapping[str, Path], *, parallel: int = 1) -> None:
    """A silo for each of the datasets, which shares its own metrics and takes part in `parallel` runs at once."""
    rules = {
        'share_metrics = "sums"': 'share_metrics = "per-silo"',
        "max_threads = 0": "max_threads = 1",
        "max_parallel_runs = 1": f"max_parallel_runs = {parallel}",
    }
    for silo, folder in folders.items():
        fed.join(silo, data={DATASET: folder})
        policy = fed.silo_home(silo) / "policy.toml"
        text = policy.read_text(encoding="utf-8")
        for old, new in rules.items():
            assert old in text, f"{policy} has no line {old}"
            text = text.replace(old, new)
        policy.write_text(text, encoding="utf-8")


def run_method(fed: Federation, name: str, seed: int) -> dict[str, Any]:
    """Train with a method and a seed, to the end; what `fedplat run show` says then. AssertionError if it fails."""
    path = fed.folder / f"{name}-{seed}.toml"
    path.write_text(spec(name, seed), encoding="utf-8")
    return fed.wait_for(fed.json("run", "submit", str(path))["id"], timeout_s=1200)


def accuracies(view: Mapping[str, Any]) -> dict[str, float]:
    """Each silo's accuracy with the last weights, on its own test set."""
    last = view["rounds_planned"]
    return {r["silo_name"]: r["metrics"]["test_accuracy"] for r in view["silo_rounds"] if r["round_number"] == last}
