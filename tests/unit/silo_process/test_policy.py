from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedplat.errors import PolicyError
from fedplat.reasons import Code
from fedplat.spec import RunSpec
from fedplat_silo.policy import TEMPLATE, Policy, load_policy


def spec(**sections: object) -> RunSpec:
    base = {
        "name": "heart",
        "task": {"name": "tabular"},
        "data": {"name": "heart"},
        "rounds": {"count": 10},
        "training": {"epochs": 1},
    }
    return RunSpec.model_validate(base | sections)


@pytest.mark.parametrize(
    ("rules", "asked", "num_silos", "rule"),
    [
        ({}, {"task": {"name": "add_constant"}}, 3, "allowed_tasks"),
        ({"allowed_strategies": ["fedavg"]}, {"strategy": {"name": "fedadam"}}, 3, "allowed_strategies"),
        ({"smallest_cohort": 3}, {}, 2, "smallest_cohort"),
        ({"most_rounds": 9}, {}, 3, "most_rounds"),
        ({"share_counts": False}, {"strategy": {"weighting": "examples"}}, 3, "share_counts"),
    ],
)
def test_each_rule_refuses_by_its_name(
    rules: dict[str, object], asked: dict[str, object], num_silos: int, rule: str
) -> None:
    reason = Policy.model_validate(rules).check(spec(**asked), num_silos)
    assert reason is not None
    assert (reason.code, reason.words) == (Code.POLICY, {"rule": rule})


def test_what_is_within_every_rule_is_allowed() -> None:
    assert Policy().check(spec(), 1) is None
    rules = Policy(allowed_tasks=("*",), smallest_cohort=3, most_rounds=10, share_counts=False)
    uniform = spec(task={"name": "mine"}, strategy={"weighting": "uniform"})
    assert rules.check(uniform, 3) is None


def test_the_first_start_writes_a_file_that_says_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    assert load_policy(path) == Policy()
    assert path.read_text() == TEMPLATE
    assert path.stat().st_mode & 0o777 == 0o600
    keys = tomllib.loads(TEMPLATE)
    assert set(keys) == set(Policy.model_fields), "every key is in the file, with its comment"
    assert Policy.model_validate(keys) == Policy(), "and has its default"


def test_a_changed_file_is_what_counts(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    load_policy(path)
    path.write_text(path.read_text().replace("most_rounds = 1000", "most_rounds = 3"))
    assert load_policy(path).most_rounds == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("allowed_task = []", "did you mean 'allowed_tasks'"),
        ("most_rounds = 0", "most_rounds"),
        ('share_metrics = "all"', "share_metrics"),
        ("most_rounds = ", "cannot be read"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=words) as caught:
        load_policy(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_gpus_are_refused_by_number() -> None:
    Policy().check_gpus((0, 7))
    Policy(allowed_gpus=(0, 1)).check_gpus((1,))
    with pytest.raises(PolicyError, match="GPU 2, 3"):
        Policy(allowed_gpus=(0, 1)).check_gpus((1, 2, 3))
