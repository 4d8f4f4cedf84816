"""The private loop against the formula by hand: sample, clip, sum, noise once, divide by a constant, step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fedplat.spec.privacy import PrivacyUnit
from fedplat_silo.data.examples import TensorExamples
from fedplat_silo.trainer.dp import training
from fedplat_silo.trainer.dp.bookkeeping import Bookkeeping
from fedplat_silo.trainer.dp.engine import Engine
from fedplat_silo.trainer.dp.fallback import OpacusHooks
from fedplat_silo.trainer.dp.sampler import PoissonSampler
from fedplat_silo.trainer.dp.training import PrivateTerms, clip_factors, train_private
from tests.unit.dp.world import Toy, by_vmap, flat, make_examples, make_round, make_spec, make_terms, mlp

KEY = bytes(range(32))
PATIENTS = torch.arange(30) % 11
NEVER, ALWAYS = 1e-12, 1.0


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Known samples and no noise, so that a round can be computed by hand."""
    silence(monkeypatch)
    monkeypatch.setattr(training, "shared_key", lambda place: KEY)
    return


def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "noised", lambda sums, deviation, divisor: sums / divisor)


def train(
    examples: TensorExamples, model: nn.Module | None = None, lr: float = 1.0, **terms: object
) -> tuple[Tensor, PrivateTerms]:
    """(how far the parameters have moved, the terms)."""
    model = mlp() if model is None else model
    agreed = make_terms(examples, **terms)  # type: ignore[arg-type]
    spec = make_spec(training={"learning_rate": lr})
    work = make_round(model, examples, agreed, spec)
    before = flat(model)
    train_private(Toy(spec), work, agreed)
    assert work.num_private_steps == agreed.num_steps
    return flat(model) - before, agreed


def by_hand(examples: TensorExamples, terms: PrivateTerms, groups: Tensor) -> Tensor:
    """Unit u has the records where `groups` is u."""
    model = mlp()
    before, sampler = flat(model), PoissonSampler(KEY, len(terms.units), terms.sampling_rate)
    for step in range(terms.num_steps):
        each = by_vmap(model, examples.inputs, examples.targets, examples.weights)
        sums = torch.zeros(each.shape[1])
        for unit in sampler.draw(step):
            gradient = each[groups == unit].mean(0)
            sums += gradient * min(1.0, terms.clip_norm / float(gradient.norm()))
        with torch.no_grad():
            moved = flat(model) - sums / terms.expected_batch_size
            nn.utils.vector_to_parameters(moved, model.parameters())
    return flat(model) - before


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("engine", [Bookkeeping, OpacusHooks])
@pytest.mark.parametrize("unit", list(PrivacyUnit))
def test_a_round_equals_the_formula(engine: type[Engine], unit: PrivacyUnit) -> None:
    """Samples of about twelve, four records in memory at a time."""
    examples = make_examples(patients=PATIENTS)
    groups = PATIENTS if unit is PrivacyUnit.PATIENT else torch.arange(30)
    found, terms = train(examples, engine=engine, unit=unit)
    expected = by_hand(examples, terms, groups)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.usefixtures("exact")
def test_no_record_moves_the_model_further_than_the_clip_norm() -> None:
    examples = make_examples(1)
    examples.targets *= 1e4
    moved, _ = train(examples, rate=ALWAYS, steps=1, clip=0.3, batch=2)
    assert float(moved.norm()) == pytest.approx(0.15, rel=1e-5)


def noise_of(rate: float, examples: TensorExamples, **terms: object) -> np.ndarray:
    """What one step adds to the sums, over clip norm times noise multiplier."""
    model = nn.Linear(300, 300)
    torch.manual_seed(0)
    moved, agreed = train(examples, model, rate=rate, steps=1, **terms)
    return (-moved * agreed.expected_batch_size / agreed.clip_norm / agreed.noise_multiplier).numpy()


def test_the_noise_is_normal_with_the_claimed_deviation() -> None:
    found = noise_of(NEVER, make_examples(num_in=300), clip=0.3, noise=2.0, batch=7)
    assert stats.kstest(found, "norm").pvalue > 1e-5


def test_noise_is_drawn_anew_in_each_step() -> None:
    """Of two steps the variance adds up; the same noise twice has twice that."""
    model = nn.Linear(300, 300)
    moved, _ = train(make_examples(num_in=300), model, rate=NEVER, steps=2, clip=1.0, noise=1.0, batch=1)
    assert float(moved.var()) == pytest.approx(2.0, rel=0.05)


@pytest.mark.usefixtures("exact")
def test_the_divisor_does_not_move_with_the_record_count() -> None:
    """The last record weighs nothing, so whether it is there must not show."""
    model, both = mlp(), []
    for count in (24, 25):
        examples = make_examples(25)
        examples.weights[24] = 0.0
        part = TensorExamples(*(t[:count] for t in (examples.inputs, examples.targets, examples.weights)))
        both.append(train(part, mlp(), rate=ALWAYS)[0])
    assert len(flat(model)) == len(both[0])
    torch.testing.assert_close(*both)


def test_an_empty_sample_is_a_step() -> None:
    reports: list[float] = []
    examples, model = make_examples(), mlp()
    terms = make_terms(examples, rate=NEVER, steps=4)
    work = make_round(model, examples, terms)
    work.report = reports.append
    before = flat(model)
    train_private(Toy(make_spec()), work, terms)
    assert reports == [0.25, 0.5, 0.75, 1.0]
    assert work.num_private_steps == 4
    assert bool((flat(model) != before).all())


@pytest.mark.usefixtures("exact")
def test_fedprox_pulls_after_the_noise_and_is_not_clipped() -> None:
    examples, model = make_examples(), mlp()
    terms = make_terms(examples, rate=NEVER, steps=1, clip=1e-6)
    work = make_round(model, examples, terms)
    work.proximal_mu = 0.5
    work.received = {name: tensor + 3.0 for name, tensor in work.received.items()}
    before = flat(model)
    train_private(Toy(make_spec()), work, terms)
    torch.testing.assert_close(flat(model) - before, torch.full_like(before, 1.5))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("engine", [Bookkeeping, OpacusHooks])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_gradient_that_is_not_finite_counts_as_zero(
    engine: type[Engine], value: float, caplog: pytest.LogCaptureFixture
) -> None:
    examples = make_examples()
    healthy = train(TensorExamples(examples.inputs, examples.targets, torch.ones(30).index_fill(0, torch.tensor(5), 0)))
    ill = TensorExamples(examples.inputs.clone(), examples.targets.clone())
    ill.inputs[5, 2], ill.targets[5] = value, value
    with caplog.at_level(logging.WARNING):
        found, _ = train(ill, engine=engine)
    torch.testing.assert_close(found, healthy[0])
    drawn = sum(5 in PoissonSampler(KEY, 30, 0.4).draw(step) for step in range(3))
    assert drawn
    assert f"{drawn} gradients were not finite" in caplog.text


def test_a_record_that_is_not_finite_stops_nothing_and_shows_in_no_metric() -> None:
    examples = make_examples()
    examples.inputs[5] = float("nan")
    terms = make_terms(examples, rate=ALWAYS, steps=2, shows_metrics=True)
    sums = train_private(Toy(make_spec()), make_round(mlp(), examples, terms), terms)
    assert sums.num_examples == 2 * 29
    assert np.isfinite(sums.totals["loss"])


def test_metrics_leave_only_if_they_are_declared_unprotected() -> None:
    examples = make_examples(patients=PATIENTS)
    for unit in PrivacyUnit:
        found = []
        for shows in (False, True):
            terms = make_terms(examples, rate=ALWAYS, steps=2, shows_metrics=shows, unit=unit)
            found.append(train_private(Toy(make_spec()), make_round(mlp(), examples, terms), terms))
        assert [sums.num_examples for sums in found] == [0, 60]
        assert found[0].totals == {"loss": 0.0}
        assert found[0].shape == found[1].shape


def outcomes(make: Callable[[], nn.Module]) -> list[bytes]:
    """Two rounds that the server can tell apart by nothing: spec, seed, data and torch's seed are the same."""
    found = []
    for _ in range(2):
        model = make()
        torch.manual_seed(5)
        np.random.seed(5)
        found.append(train(make_examples(), model)[0].numpy().tobytes())
    return found


def test_who_is_sampled_is_nothing_that_the_server_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch)
    assert len(set(outcomes(mlp))) == 2


@pytest.mark.usefixtures("exact")
def test_dropout_is_nothing_that_the_server_knows() -> None:
    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 50), nn.Dropout(0.5), nn.Linear(50, 2))

    assert len(set(outcomes(make))) == 2
    assert len(set(outcomes(mlp))) == 1  # the fixture leaves no other randomness


def test_factors_clip_to_the_norm_and_leave_the_rest() -> None:
    norms = torch.tensor([0.0, 0.5, 1.0, 4.0])
    assert clip_factors(norms, 1.0).tolist() == [1.0, 1.0, 1.0, 0.25]
