"""The [privacy] section: what it takes, what it refuses, and what it refuses elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedplat.errors import SpecError
from fedplat.privacy import PrivacyError, SampledGaussian, epsilon, planning
from fedplat.privacy.planning import check_metrics, planned_event, planned_events
from fedplat.spec import RunSpec, parse_spec
from fedplat.spec.privacy import (
    PrivacyUnit,
    check_private,
    expected_batch_size,
    num_evaluations,
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
{more}
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
NOISED = RECORD.replace("unprotected", "noised")
Make = Callable[..., RunSpec]


def make(privacy: str = RECORD + "epsilon = 2", **parts: str) -> RunSpec:
    given = {
        "strategy": 'weighting = "uniform"',
        "training": "steps = 5\nbatch_size = 16",
        "options": "",
        "stop": "",
        "checkpoint": "",
        "more": "",
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
        ('mode = "record"\nmetrics = "some"', "should be 'none', 'noised' or 'unprotected'"),
        (NOISED + "epsilon = 1", "metrics = 'noised' needs metrics_noise_multiplier"),
        (NOISED + "epsilon = 1\nmetrics_noise_multiplier = 0", "greater than 0"),
        (NOISED + "epsilon = 1\nmetrics_noise_multiplier = 5\nmetrics_loss_clip = 0", "greater than 0"),
        (RECORD + "epsilon = 1\nmetrics_noise_multiplier = 5", "is for metrics = 'noised' alone"),
        ("metrics_noise_multiplier = 5", "metrics_noise_multiplier protect nobody"),
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
FEW = NOISED + "epsilon = 2\nmetrics_noise_multiplier = 50"


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
        ({"privacy": FEW, "stop": "kl = 0.5"}, "not enough for [stop] kl"),
        ({"privacy": FEW, "stop": 'metric = "auroc", target = 0.9'}, "not enough for [stop] metric = 'auroc'"),
        ({"privacy": FEW, "checkpoint": 'keep_best = "rmse"'}, "not enough for [checkpoint] keep_best = 'rmse'"),
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


def test_noised_metrics_are_enough_for_most() -> None:
    check_private(make(FEW, stop="patience = 2", checkpoint='keep_best = "accuracy"'))
    check_private(make(FEW, stop='metric = "auroc"'))


def assert_the_whole_run_fits() -> None:
    """Steps, and eleven evaluations of ten rounds, together within what the spec says, and hardly below it."""
    spec = make(FEW)
    training, metrics = planned_events(spec, 400)
    assert metrics == SampledGaussian(sampling_rate=1.0, noise_multiplier=50.0, num_steps=11)
    assert (training.sampling_rate, training.num_steps) == (0.04, 50)
    happened = [training, metrics]
    assert 1.99 < epsilon(happened, delta=1e-5) <= 2.0
    assert training.noise_multiplier > planned_event(make(), 400).noise_multiplier


def test_training_is_calibrated_beside_the_metrics() -> None:
    assert_the_whole_run_fits()


def test_metrics_that_are_not_planned_for_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "planned_metrics", lambda spec: ())
    with pytest.raises((AssertionError, ValueError)):
        assert_the_whole_run_fits()


def test_every_evaluation_is_planned() -> None:
    every = [num_evaluations(make(more=f"evaluation = {{ every = {k} }}")) for k in (1, 3, 5, 10, 11)]
    assert every == [11, 5, 3, 2, 2], "those of rounds 1, 1 + k, 1 + 2k ..., and the last weights"


def test_metrics_that_alone_take_more_than_the_run_may_have() -> None:
    spec = make(NOISED + "epsilon = 2\nmetrics_noise_multiplier = 5")
    with pytest.raises(PrivacyError, match=r"11 evaluations alone come to epsilon 2\.738 .* have 2\s"):
        planned_events(spec, 400)
    with pytest.raises(PrivacyError):
        check_metrics(spec)
    check_metrics(make(FEW))
    check_metrics(make(NOISED + "noise_multiplier = 1\nmetrics_noise_multiplier = 0.1"))


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
