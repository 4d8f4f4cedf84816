"""The [privacy] section: what it takes, what it refuses, and what it refuses elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedplat.errors import SpecError
from fedplat.privacy import epsilon
from fedplat.privacy.planning import planned_event
from fedplat.spec import RunSpec, parse_spec
from fedplat.spec.privacy import (
    PrivacyUnit,
    check_private,
    expected_batch_size,
    privacy_unit,
    sampling_rate,
    steps_per_round,
)
from fedplat.spec.template import write_template

SPEC = """
name = "test"
rounds = {{ count = 10 }}
data = {{ name = "clinic" }}
strategy = {{ {strategy} }}
stop = {{ {stop} }}
checkpoint = {{ {checkpoint} }}
[task]
name = "tabular"
[task.options]
{options}
target = {{ column = "ill", categories = ["no", "yes"] }}
features = [{{ column = "age", kind = "numeric", center = 50, scale = 10 }}]
[training]
{training}
[privacy]
{privacy}
"""
RECORD = 'mode = "record"\nmetrics = "unprotected"\ndelta = 1e-5\n'
Make = Callable[..., RunSpec]


def make(privacy: str = RECORD + "epsilon = 2", **parts: str) -> RunSpec:
    given = {
        "strategy": 'weighting = "uniform"',
        "training": "steps = 5\nbatch_size = 16",
        "options": "",
        "stop": "",
        "checkpoint": "",
    }
    return parse_spec(SPEC.format(**given | parts, privacy=privacy))


def test_by_default_nothing_is_private() -> None:
    assert not make("").privacy.is_private
    check_private(make("", strategy='weighting = "examples"'))


def test_defaults_come_from_the_rest_of_the_spec() -> None:
    spec = make()
    check_private(spec)
    assert (expected_batch_size(spec), privacy_unit(spec)) == (16, PrivacyUnit.RECORD)
    assert privacy_unit(make(options='patient = "id"')) is PrivacyUnit.PATIENT
    assert privacy_unit(make(RECORD + 'epsilon = 1\nunit = "record"', options='patient = "id"')) is PrivacyUnit.RECORD
    assert expected_batch_size(make(RECORD + "epsilon = 1\nexpected_batch_size = 64")) == 64


def test_rate_and_steps_follow_from_the_number_of_units() -> None:
    spec = make(training="epochs = 2\nbatch_size = 16")
    assert [sampling_rate(spec, n) for n in (8, 16, 64)] == [1.0, 1.0, 0.25]
    assert [steps_per_round(spec, n) for n in (8, 16, 17, 64)] == [2, 2, 4, 8]
    assert steps_per_round(make(), 64) == 5


def test_noise_is_calibrated_for_the_whole_run() -> None:
    event = planned_event(make(), 400)
    assert (event.sampling_rate, event.num_steps) == (0.04, 50)
    assert 1.99 < epsilon([event], delta=1e-5) <= 2.0
    assert planned_event(make(RECORD + "noise_multiplier = 1.25"), 400).noise_multiplier == 1.25


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ('mode = "distributed"', "'distributed' is not offered by this version"),
        ('mode = "silo"', "'silo' is not offered by this version"),
        ('mode = "secret"', "should be 'none' or 'record'"),
        ('mode = "record"\nmetrics = "noised"', "'noised' is not offered by this version"),
        ('mode = "record"\ndelta = 1e-5\nepsilon = 1', "say what happens to the metrics"),
        (RECORD, "either epsilon or noise_multiplier"),
        (RECORD + "epsilon = 1\nnoise_multiplier = 1", "either epsilon or noise_multiplier"),
        ('mode = "record"\nmetrics = "none"\nepsilon = 1', "give delta"),
        (RECORD + "epsilon = 0", "greater than 0"),
        (RECORD + "epsilon = 1\nclip_norm = 0", "greater than 0"),
        (RECORD + "epsilon = 1\nexpected_batch_size = 0", "greater than or equal to 1"),
        ("epsilon = 1\ndelta = 1e-5", "epsilon, delta protect nobody without mode = 'record'"),
        ('metrics = "none"', "metrics protect nobody"),
    ],
)
def test_the_section_refuses(privacy: str, words: str) -> None:
    with pytest.raises(SpecError) as error:
        make(privacy)
    assert words in str(error.value)


HIDDEN = RECORD.replace("unprotected", "none") + "epsilon = 2"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"strategy": ""}, "weighting must be 'uniform' or 'declared'"),
        ({"training": "steps = 5\ngradient_clip = 1.0"}, "gradient_clip has no place"),
        ({"training": "steps = 5\nlocal_checkpoint_steps = 2"}, "local_checkpoint_steps has no place"),
        ({"options": 'scaling = "local"'}, "scaling must be 'declared'"),
        ({"privacy": RECORD + 'epsilon = 1\nunit = "patient"'}, "needs a patient column"),
        ({"privacy": HIDDEN, "stop": "patience = 2"}, "no figures for [stop] patience"),
        ({"privacy": HIDDEN, "stop": "target = 0.9\nkl = 0.5".replace("\n", ", ")}, "[stop] target, [stop] kl"),
        ({"privacy": HIDDEN, "checkpoint": 'keep_best = "loss"'}, "[checkpoint] keep_best"),
    ],
)
def test_what_would_void_the_guarantee_is_refused_elsewhere(parts: dict[str, str], words: str) -> None:
    with pytest.raises((ValueError, SpecError)) as error:
        check_private(make(**parts))
    assert words in str(error.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises((ValueError, SpecError)) as error:
        check_private(make(strategy="", options='scaling = "local"'))
    assert "weighting" in str(error.value)
    assert "scaling" in str(error.value)


def test_declared_class_weights_are_fine() -> None:
    check_private(make(training="steps = 5\nclass_weights = [1.0, 3.0]"))


def test_a_spec_survives_its_canonical_form() -> None:
    for spec in (make(), make("")):
        assert RunSpec.model_validate_json(spec.canonical()) == spec


def test_the_template_has_a_private_spec_in_its_comments() -> None:
    text = write_template("tabular").replace('mode = "none"', 'mode = "record"').replace('"examples"', '"uniform"')
    for key in ("metrics", "delta", "epsilon", "expected_batch_size"):
        text = text.replace(f"# {key} =", f"{key} =")
    spec = parse_spec(text)
    check_private(spec)
    assert (spec.privacy.epsilon, expected_batch_size(spec)) == (8.0, 32)
