"""Four hospitals' real data through a real server and silos, beside published figures and plain numpy."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import fmean

import pytest

from tests.support.federation import Federation, federation
from tests.support.heart import HOSPITALS, NEAR, POOLED, accuracies, accuracy, join_hospitals, prepare, read, run_method
from tests.support.heart import split as split_rows

# Plain PyTorch in one process, 20 seeds, the same protocol with declared scaling.
EXPECTED, TOLERANCE = 0.793, 0.05

pytestmark = pytest.mark.skipif(not NEAR.exists(), reason="the heart data are not beside the repository")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepare(NEAR, tmp_path_factory.mktemp("heart"))


@pytest.fixture(scope="module")
def hospitals(folders: dict[str, Path]) -> Iterator[Federation]:
    with federation() as fed:
        join_hospitals(fed, {name: folders[name] for name in HOSPITALS})
        yield fed


def test_the_split_has_the_published_sizes() -> None:
    sizes = {name: tuple(map(len, split_rows(read(NEAR / f"processed.{name}.data")))) for name in HOSPITALS}
    assert sizes == {"cleveland": (199, 104), "hungarian": (172, 89), "switzerland": (30, 16), "va": (85, 45)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [42, 43])
def test_accuracy_is_the_known_one_and_the_exported_model_has_it(
    hospitals: Federation, folders: dict[str, Path], tmp_path: Path, seed: int
) -> None:
    view = run_method(hospitals, "declared", seed)

    each = accuracies(view)
    assert set(each) == set(HOSPITALS)
    assert fmean(each.values()) == pytest.approx(EXPECTED, abs=TOLERANCE)

    hospitals.command("run", "export", view["id"], "--to", str(tmp_path / "model"))
    assert each == {name: accuracy(tmp_path / "model", folders[name] / "test.csv") for name in HOSPITALS}
    assert accuracy_in_sql(hospitals, view["id"]) == accuracy(tmp_path / "model", folders[POOLED] / "test.csv")


def accuracy_in_sql(fed: Federation, run: str) -> float:
    """Of the last weights, over the test patients of all hospitals."""
    query = "select metrics from evaluations where run_id = ? and split = 'test' order by round_number desc limit 1"
    with closing(sqlite3.connect(fed.folder / "server" / "server" / "fedplat.db")) as database:
        [metrics] = database.execute(query, (run,)).fetchone()
    return float(json.loads(metrics)["accuracy"])
