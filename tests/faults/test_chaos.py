"""Ten kills at random moments of randomly chosen processes, with the acceptance of the campaign."""

from __future__ import annotations

import pytest

from tests.faults.chaos import run_campaign


@pytest.mark.slow
def test_ten_kills_change_nothing() -> None:
    result = run_campaign(kills=10, seed=1, rounds=12, steps=1500)
    assert result["kills"] == 10
    assert result["gaps"] == 0
    assert result["orphans"] == 0
    assert result["bit_identical"]
