"""Kills at random moments of randomly chosen processes, with the acceptance of the campaigns."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.campaign import STATES
from tests.faults.chaos import run_campaign
from tests.faults.losses import run_losses


def check(result: dict[str, Any], kills: int) -> None:
    check_whole(result, kills)
    assert result["bit_identical"], result


def check_whole(result: dict[str, Any], kills: int) -> None:
    assert result["kills"] == kills, result
    assert set(STATES) <= set(result["kills_by_state"]), result
    assert (result["gaps"], result["orphans"]) == (0, 0), result


def test_ten_kills_change_nothing() -> None:
    check(run_campaign(kills=10, seed=1, rounds=12, steps=200), 10)


@pytest.mark.slow
def test_ten_kills_change_nothing_under_masks_either() -> None:
    check(run_campaign(kills=10, seed=3, rounds=12, steps=200, secure=True), 10)


@pytest.mark.slow
def test_ten_kills_are_charged_no_less_than_the_truth_and_no_more_than_repeats() -> None:
    result = run_campaign(kills=10, seed=4, rounds=12, steps=200, private=True)
    check_whole(result, 10)
    assert result["ledger_steps"] > 0, result
    names = ("ledger_under", "ledger_over_unexplained", "ledger_damaged")
    assert [result[name] for name in names] == [[], [], []], result
    assert result["repeats_charged"] <= 10, result


@pytest.mark.slow
def test_thirty_kills_change_nothing() -> None:
    check(run_campaign(kills=30, seed=2, rounds=20, steps=1500), 30)


@pytest.mark.slow
def test_the_others_go_on_without_a_silo_that_is_lost_for_good() -> None:
    result = run_losses(kills=12, lose=1, seed=1, rounds=12, steps=500)
    assert result["state"] == "finished", result
    assert result["cohorts"].get(3), result
    assert (result["gaps"], result["orphans"], result["open_parts"]) == (0, 0, 0), result
    wrong = (result["too_small"], result["with_the_lost"], result["wrong_hashes"], result["wrong_means"])
    assert wrong == ([], [], [], []), result
