"""The tests can fail: each broken variant of the trainer, made by replacing one function, fails a named test.

Variants that need several ranks are in `test_ranks`; those of the accountant and of the ledger beside their own tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedplat.spec import privacy
from fedplat_silo.trainer.dp import bookkeeping, layers, noise, preparing, sampler, training
from fedplat_silo.trainer.dp.bookkeeping import Bookkeeping
from fedplat_silo.trainer.dp.layers import Seen, Share
from fedplat_silo.trainer.dp.units import Units
from tests.unit.core import test_spec_privacy
from tests.unit.dp import test_clipping, test_noise, test_preparing, test_sampling, test_training
from tests.unit.dp.world import make_spec

Test = Callable[[], None]
_noised, _box_muller, _draw = noise.noised, noise.box_muller, sampler.PoissonSampler.draw
_release, _embedding, _problems = training.release, layers.embedding, privacy._problems


def halved(sums: Tensor, deviation: float, divisor: float) -> Tensor:
    return _noised(sums, deviation / 2, divisor)


def without_clip_norm(sums: Tensor, deviation: float, divisor: float) -> Tensor:
    return _noised(sums, deviation / 0.3, divisor)


def from_the_seed(num_bytes: int) -> bytes:
    return hashlib.shake_256(b"42").digest(num_bytes)


def short_tailed(words: Any, deviation: float) -> Any:
    """16 bits a number: the tails end at 4.7 standard deviations."""
    return _box_muller((words >> 48) << 48, deviation)


def no_clipping(norms: Tensor, clip_norm: float) -> Tensor:
    return torch.ones_like(norms)


def clipped_to_twice_the_norm(norms: Tensor, clip_norm: float) -> Tensor:
    return 2 * clip_norm / norms.clamp(min=2 * clip_norm)


def clipped_after_noise(sums: Tensor, parameters: list[nn.Parameter], work: Any, terms: Any) -> None:
    _release(sums, parameters, work, terms)
    nn.utils.clip_grad_norm_(parameters, terms.clip_norm / terms.expected_batch_size)


def not_noised(sums: Tensor, parameters: list[nn.Parameter], work: Any, terms: Any) -> None:
    for parameter, part in training.split(sums / terms.expected_batch_size, parameters).items():
        parameter.grad = part.view_as(parameter).clone()


def fixed_size(self: sampler.PoissonSampler, step: int) -> sampler.Indices:
    generator = sampler.np.random.default_rng(step)
    num_units = len(self._zeros) // 8
    size = round(self._threshold / 2**64 * num_units)
    return sampler.np.sort(generator.choice(num_units, size, replace=False))


def one_coin_for_all(self: sampler.PoissonSampler, step: int) -> sampler.Indices:
    drawn = _draw(self, step)
    return sampler.np.arange(len(self._zeros) // 8 if 0 in drawn else 0)


def same_sample_each_step(self: sampler.PoissonSampler, step: int) -> sampler.Indices:
    return _draw(self, 0)


def not_only_finite(self: training.Clipper, batch: Any) -> None:
    """Nothing looks at the norms."""
    inputs, targets = self._work.examples.fetch(batch.rows)
    losses = self._task.loss(self._engine.model, inputs, targets)[1]
    norms = self._engine.norms((losses * batch.weights.to(losses)).sum(), batch.num_units)
    self._engine.add_clipped(training.clip_factors(norms, self._terms.clip_norm), self._parts)


def each_record_of_a_patient(examples: Any, unit: Any) -> Units:
    from fedplat.spec.privacy import PrivacyUnit

    return Units(examples, PrivacyUnit.RECORD)


def without_a_word_on_scaling(spec: Any) -> Any:
    return (problem for problem in _problems(spec) if "scaling" not in problem)


def ghost_without_bound(of_inputs: Tensor, of_gradients: Tensor) -> Tensor:
    return (of_inputs * of_gradients).sum((-2, -1)).clamp(min=0)


def the_formula() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "noised", lambda sums, deviation, divisor: sums / divisor)
        patch.setattr(training, "shared_key", lambda place: test_training.KEY)
        test_training.test_a_round_equals_the_formula(Bookkeeping, test_training.PrivacyUnit.RECORD)


def the_clip_norm() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "noised", lambda sums, deviation, divisor: sums / divisor)
        test_training.test_no_record_moves_the_model_further_than_the_clip_norm()


def secrecy() -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_training.test_who_is_sampled_is_nothing_that_the_server_knows(patch)


def patients() -> None:
    found = test_preparing.prepare(
        test_preparing.Toy(make_spec()),
        test_preparing.mlp(),
        test_preparing.make_examples(patients=test_training.PATIENTS),
        make_spec(privacy={"unit": "patient"}),
    )
    assert len(found.units) == 11


VARIANTS: list[tuple[str, Any, str, Any, Test]] = [
    ("noise halved", training, "noised", halved, test_training.test_the_noise_is_normal_with_the_claimed_deviation),
    (
        "noise not in units of the clip norm",
        training,
        "noised",
        without_clip_norm,
        test_training.test_the_noise_is_normal_with_the_claimed_deviation,
    ),
    ("no noise", training, "release", not_noised, test_training.test_the_noise_is_normal_with_the_claimed_deviation),
    (
        "clip after noise",
        training,
        "release",
        clipped_after_noise,
        test_training.test_the_noise_is_normal_with_the_claimed_deviation,
    ),
    ("tails cut off", test_noise, "box_muller", short_tailed, test_noise.assert_box_muller),
    (
        "the same noise each step",
        noise.secrets,
        "token_bytes",
        from_the_seed,
        test_training.test_noise_is_drawn_anew_in_each_step,
    ),
    (
        "noise from a known seed",
        noise.secrets,
        "token_bytes",
        from_the_seed,
        test_noise.test_it_is_fresh_each_time_whatever_seeds_are_set,
    ),
    ("samples from a known seed", sampler.secrets, "token_bytes", from_the_seed, secrecy),
    ("no clipping", training, "clip_factors", no_clipping, the_clip_norm),
    ("clipped to twice the norm", training, "clip_factors", clipped_to_twice_the_norm, the_clip_norm),
    ("samples of one size", sampler.PoissonSampler, "draw", fixed_size, test_sampling.test_sizes_are_binomial),
    ("one coin for all", sampler.PoissonSampler, "draw", one_coin_for_all, test_sampling.test_sizes_are_binomial),
    (
        "one sample for all steps",
        sampler.PoissonSampler,
        "draw",
        same_sample_each_step,
        test_sampling.test_sizes_are_binomial,
    ),
    (
        "a record instead of a patient",
        preparing,
        "Units",
        each_record_of_a_patient,
        patients,
    ),
    (
        "local standardisation",
        privacy,
        "_problems",
        without_a_word_on_scaling,
        test_spec_privacy.test_all_problems_are_named_at_once,
    ),
    (
        "rounding decides a norm",
        layers,
        "_ghost",
        ghost_without_bound,
        test_clipping.test_a_gradient_that_cancels_out_is_never_clipped_too_little,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "broken", "test"), [v[1:] for v in VARIANTS], ids=[v[0] for v in VARIANTS])
def test_is_noticed(owner: Any, name: str, broken: Any, test: Test, monkeypatch: pytest.MonkeyPatch) -> None:
    test()
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AssertionError):
        test()


def divided_by_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    clipped_sums = training.Clipper.clipped_sums

    def remember(self: training.Clipper, chosen: Any) -> Tensor:
        self._work.drawn = len(chosen)  # type: ignore[attr-defined]
        return clipped_sums(self, chosen)

    def release(sums: Tensor, parameters: list[nn.Parameter], work: Any, terms: Any) -> None:
        for parameter, part in training.split(sums / max(1, work.drawn), parameters).items():
            parameter.grad = part.view_as(parameter).clone()

    monkeypatch.setattr(training.Clipper, "clipped_sums", remember)
    monkeypatch.setattr(training, "release", release)


def test_a_divisor_that_moves_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "noised", lambda sums, deviation, divisor: sums / divisor)
    monkeypatch.setattr(training, "shared_key", lambda place: test_training.KEY)
    test_training.test_the_divisor_does_not_move_with_the_record_count()
    divided_by_what_was_drawn(monkeypatch)
    for test in (test_training.test_the_divisor_does_not_move_with_the_record_count, the_formula):
        with pytest.raises(AssertionError):
            test()


def test_a_record_that_is_not_finite_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "noised", lambda sums, deviation, divisor: sums / divisor)
    monkeypatch.setattr(training, "shared_key", lambda place: test_training.KEY)
    monkeypatch.setattr(training.Clipper, "_add", not_only_finite)
    with pytest.raises(AssertionError):
        test_training.test_a_gradient_that_is_not_finite_counts_as_zero(Bookkeeping, float("nan"), caplog)


def test_metrics_that_leave_unaccounted_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    always = property(lambda terms: True, lambda terms, value: None)
    monkeypatch.setattr(training.PrivateTerms, "shows_metrics", always, raising=False)
    with pytest.raises(AssertionError):
        test_training.test_metrics_leave_only_if_they_are_declared_unprotected()


def shared_layers_counted_twice(layer: nn.Embedding, seen: Seen) -> Any:
    """Words of one record that are the same are taken for different ones."""
    for share in _embedding(layer, seen):
        each = seen.gradients.flatten(1).square().sum(1)
        yield Share(share.parameter, each, share.add_scaled)


def test_words_taken_for_different_ones_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bookkeeping.SHARES, nn.Embedding, shared_layers_counted_twice)
    with pytest.raises(AssertionError):
        test_clipping.test_words_that_occur_many_times(None, torch.float64)
