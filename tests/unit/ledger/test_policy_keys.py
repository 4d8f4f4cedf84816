"""What policy.toml says about privacy, hours and approvals."""

from __future__ import annotations

from datetime import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedplat.errors import HomeError, NotFoundError
from fedplat.home import SiloHome
from fedplat.reasons import Code
from fedplat.spec import RunSpec
from fedplat_silo.approvals import ask, decide, find, pending
from fedplat_silo.policy import Policy

PRIVATE = {"mode": "record", "metrics": "none", "delta": 1e-5}


def spec(*, task: dict[str, object] | None = None, **privacy: object) -> RunSpec:
    base = {
        "name": "heart",
        "task": task or {"name": "tabular", "options": {"patient": "pid"}},
        "data": {"name": "heart"},
        "rounds": {"count": 10},
        "training": {"epochs": 1},
        "strategy": {"weighting": "uniform"},
    }
    return RunSpec.model_validate(base | {"privacy": PRIVATE | {"epsilon": 3.0} | privacy})


def plain() -> RunSpec:
    return spec().model_copy(update={"privacy": RunSpec.model_fields["privacy"].default})


def refused_by(policy: Policy, asked: RunSpec) -> object:
    reason = policy.check(asked, 3)
    if reason is None:
        return None
    assert reason.code is Code.POLICY
    return reason.words["rule"]


@pytest.mark.parametrize(
    ("rules", "asked", "rule"),
    [
        ({"require_privacy": True}, plain(), "require_privacy"),
        ({"allowed_privacy_modes": ["record"]}, plain(), "allowed_privacy_modes"),
        ({"allowed_privacy_modes": ["none"]}, spec(), "allowed_privacy_modes"),
        ({"largest_epsilon": 2.9}, spec(), "largest_epsilon"),
        ({"smallest_noise_multiplier": 1.1}, spec(epsilon=None, noise_multiplier=1.0), "smallest_noise_multiplier"),
        (
            {"smallest_noise_multiplier": 1.1},
            spec(metrics="noised", metrics_noise_multiplier=1.0),
            "smallest_noise_multiplier",
        ),
        ({"privacy_unit": "patient"}, spec(unit="record"), "privacy_unit"),
    ],
)
def test_each_key_refuses_by_its_name(rules: dict[str, object], asked: RunSpec, rule: str) -> None:
    assert refused_by(Policy(), asked) is None
    assert refused_by(Policy.model_validate(rules), asked) == rule


def test_what_keeps_every_key_is_allowed() -> None:
    rules = Policy(
        require_privacy=True, allowed_privacy_modes=("record",), largest_epsilon=3.0, smallest_noise_multiplier=1.0
    )
    assert rules.check(spec(), 3) is None
    assert rules.check_plan(epsilon=3.0, noise_multiplier=1.0) is None
    for epsilon, noise, rule in ((3.01, 1.0, "largest_epsilon"), (3.0, 0.99, "smallest_noise_multiplier")):
        reason = rules.check_plan(epsilon=epsilon, noise_multiplier=noise)
        assert reason is not None
        assert reason.words["rule"] == rule


@pytest.mark.parametrize(
    ("hours", "open_at", "closed_at"),
    [
        ("00:00-24:00", ["00:00", "12:00", "23:59"], []),
        ("08:00-17:30", ["08:00", "17:29"], ["07:59", "17:30", "00:00"]),
        ("20:00-06:30", ["20:00", "23:59", "00:00", "06:29"], ["06:30", "19:59", "12:00"]),
    ],
)
def test_hours(hours: str, open_at: list[str], closed_at: list[str]) -> None:
    rules = Policy(allowed_hours=hours)
    assert all(rules.is_open(time.fromisoformat(at)) for at in open_at)
    assert not any(rules.is_open(time.fromisoformat(at)) for at in closed_at)


@pytest.mark.parametrize("hours", ["8-17", "08:00", "24:00-08:00", "08:60-09:00", "08:00-17:00 ", ""])
def test_hours_that_are_not_understood(hours: str) -> None:
    with pytest.raises(ValidationError):
        Policy(allowed_hours=hours)


def test_a_run_waits_until_somebody_decides(tmp_path: Path) -> None:
    home = SiloHome(tmp_path, "hospital-a")
    home.create()
    assert pending(home) == []
    assert ask(home, "r-1", spec()).decision == "pending"
    assert ask(home, "r-2", spec()).decision == "pending"
    assert [a.run for a in pending(home)] == ["r-1", "r-2"]
    decide(home, "r-1", "approved")
    decide(home, "r-2", "refused")
    assert [ask(home, run, spec()).decision for run in ("r-1", "r-2")] == ["approved", "refused"]
    assert pending(home) == []
    assert find(home, "r-1").decided_at is not None
    assert ask(home, "r-1", spec(epsilon=4.0)).decision == "pending", "another spec was never agreed to"
    for run in ("r-3", "../r-1"):
        with pytest.raises(NotFoundError):
            decide(home, run, "approved")
    (home.path / "approvals" / "r-1.json").write_text("{}")
    with pytest.raises(HomeError, match=r"r-1\.json"):
        ask(home, "r-1", spec())
