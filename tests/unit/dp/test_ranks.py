"""Two and four ranks, in processes of their own, end where one does; and what that would not hold for is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fedplat_silo.trainer.ddp import Place
from tests.unit.dp.ranks import METRICS_NOISE, SCENARIOS, play

ROOT = Path(__file__).resolve().parents[3]


class Played:
    """What all ranks of all scenarios have ended with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str) -> np.ndarray:
        """The parameters' way; the same at each rank to the last bit."""
        scenario = SCENARIOS[name]
        if scenario.num_ranks == 1:
            return play(scenario, Place()).numpy()
        found = [np.load(self._folder / f"{name} {rank}.npy") for rank in range(scenario.num_ranks)]
        assert len({moved.tobytes() for moved in found}) == 1
        return found[0]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(ROOT), str(ROOT / "clients")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.dp.ranks"]
    ranks = [subprocess.Popen([*command, str(rank), str(folder)], env=environment, cwd=ROOT) for rank in range(4)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * 4
    finally:
        for rank in ranks:
            rank.kill()
    return Played(folder)


def assert_equal(played: Played, one: str, several: str) -> None:
    expected = played(one)
    assert np.linalg.norm(expected) > 0.01
    assert np.linalg.norm(played(several) - expected) / np.linalg.norm(expected) < 1e-6


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("one", "two"),
        ("one", "four"),
        ("few one", "few four"),
        ("patients one", "patients two"),
        ("metrics one", "metrics two"),
    ],
)
def test_several_ranks_end_where_one_does(played: Played, one: str, several: str) -> None:
    """`few`: three records, so that most ranks have nothing in most steps."""
    assert_equal(played, one, several)


def assert_noised_once(moved: np.ndarray) -> None:
    assert stats.kstest(moved * 12 / 0.3, "norm").pvalue > 1e-5


def test_two_ranks_are_noised_once(played: Played) -> None:
    assert_noised_once(played("noise two"))


def test_noise_of_each_rank_is_noticed(played: Played) -> None:
    with pytest.raises(AssertionError):
        assert_noised_once(played("noise per rank"))


def assert_metrics_noised_once(played: Played, name: str) -> None:
    assert stats.kstest((played(name) - played("metrics one")) / METRICS_NOISE, "norm").pvalue > 1e-5


def test_the_metrics_of_two_ranks_are_noised_once(played: Played) -> None:
    assert_metrics_noised_once(played, "metrics noise")


def test_metrics_noise_of_each_rank_is_noticed(played: Played) -> None:
    with pytest.raises(AssertionError):
        assert_metrics_noised_once(played, "metrics noise per rank")


@pytest.mark.parametrize("broken", ["whole mask", "own masks"])
def test_ranks_that_do_not_share_one_sample_are_noticed(played: Played, broken: str) -> None:
    assert torch.isfinite(torch.from_numpy(played(broken))).all()
    with pytest.raises(AssertionError):
        assert_equal(played, "one", broken)
