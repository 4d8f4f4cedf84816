"""The tests can fail: each broken variant of the code, made by replacing one function, is caught by a named test."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from fedplat.secagg import bundles, fixedpoint, keys, prg, roster, rules, shamir, silo, state, terms
from fedplat.secagg.errors import RefusedError
from fedplat.secagg.messages import Roster, TrainPart
from fedplat.secagg.roster import RunBinding
from fedplat.secagg.rules import SiloRules
from fedplat.secagg.state import Agreed, Release, SiloState, StepRecord
from fedplat.secagg.terms import StepTerms
from tests.unit.secagg import (
    test_attack_bundles,
    test_attack_restarts,
    test_attack_roster,
    test_attack_views,
    test_fixedpoint,
    test_further_attacks,
    test_rounds,
    world,
)
from tests.unit.secagg.world import Drops, update_of

_expand, _context, _masks, _new_record = keys.expand, StepTerms.context, silo.masks, silo._new_record
_record_of, _split, _limit = silo._record_of, shamir.split, fixedpoint.limit_for
_train_part, _agreed = silo._train_part, silo._agreed


def narrow_seed(root: bytes) -> bytes:
    return _expand(root, "mask")[:4] + bytes(28)


def one_bundle_key(root: bytes, sender: str, receiver: str, upload_id: bytes) -> bytes:
    return _expand(root, "bundle")


def roster_hash_of_the_run(binding: RunBinding, roster: Roster) -> bytes:
    return keys.digest("roster", binding.run, roster.epoch)


def without_weights(terms: StepTerms, roster_hash: bytes) -> bytes:
    return _context(replace(terms, weights=""), roster_hash)


def without_config(terms: StepTerms, roster_hash: bytes) -> bytes:
    return _context(replace(terms, config=""), roster_hash)


def without_silos(terms: StepTerms, roster_hash: bytes) -> bytes:
    return _context(replace(terms, silos=()), roster_hash)


def believed_key(*_: object) -> None:
    """Takes any key for its word."""


def shares_from_zero(secret: bytes, threshold: int, num_shares: int, coefficients: bytes) -> list[bytes]:
    return [secret, *_split(secret, threshold, num_shares, coefficients)[:-1]]


def fresh_shares(secrets_: Sequence[bytes], threshold: int, _: bytes) -> list[bytes]:
    joined = b"".join(secrets_)
    return _split(joined, threshold, len(secrets_), secrets.token_bytes((threshold - 1) * len(joined)))


def too_wide(n_max: int) -> int:
    return (2**31 - 1) // (n_max // 2)


def a_mask_missing(name: str, record: StepRecord) -> list[prg.Stream]:
    return _masks(name, record)[:-1]


def no_self_mask(name: str, record: StepRecord) -> list[prg.Stream]:
    return _masks(name, record)[1:]


def masks_all_added(name: str, record: StepRecord) -> list[prg.Stream]:
    return [prg.Stream(m.seed, 1) for m in _masks(name, record)]


def unsigned_cohort(*_: object) -> None:
    """Opens whatever it is shown."""


def forgets_its_cohort(state: SiloState, step: int) -> StepRecord:
    return _record_of(state, step).model_copy(update={"agreed": None})


def same_chain_key(key: bytes) -> bytes:
    return key


def low_threshold(num_silos: int, strong: bool) -> int:
    return (num_silos + 1) // 2


def reused_self_seed(state: SiloState, terms: StepTerms, context: bytes, update: prg.Words) -> StepRecord:
    record = _new_record(state, terms, context, update)
    return record.model_copy(update={"self_seed": keys.digest(state.name)})


def draws_again(name: str, record: StepRecord) -> TrainPart:
    """Another upload id and self mask for the same step."""
    fresh = {"upload_id": secrets.token_bytes(16), "self_seed": secrets.token_bytes(32)}
    return _train_part(name, record.model_copy(update=fresh))


def any_update(record: StepRecord, update: prg.Words) -> None:
    """Masks whatever it is given."""


def uncounted(state: SiloState, record: StepRecord, agreed: Agreed, released: tuple[Release, ...]) -> SiloState:
    done = _agreed(state, record, agreed, released)
    return done.model_copy(update={"releases": {}})


def without_looking(
    state: SiloState, insisted: SiloRules, record: StepRecord, names: Sequence[str]
) -> tuple[Release, ...]:
    return (Release(silos=rules._names_digest(record.silos), cohort=bytes(16)),)


def all_the_same(names: Sequence[str]) -> bytes:
    return bytes(16)


def rounds_down(x: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> None:
    np.floor(x, out=x)


def takes_any_order(names: Sequence[str], order: Sequence[str]) -> bool:
    return set(names) <= set(order)


def any_run(kept: SiloState | None, binding: RunBinding, name: str) -> SiloState:
    return kept or SiloState(binding=binding, name=name, family=binding.run)


def the_sum_is_exact() -> None:
    test_rounds.check(world.build(4), 1, Drops(frozenset([world.name_of(3)])))


def split_views_give_nothing() -> None:
    for num_silos in (3, 5, 7, 9):
        found = test_attack_views.split_views(num_silos)
        # The attack is a real one: it recovers the update to the bit.
        assert found is None or not (found == update_of(0)).all()


def every_bundle_has_a_key_of_its_own() -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_attack_bundles.test_every_bundle_has_a_key_of_its_own(patch)


class Variant(NamedTuple):
    name: str
    where: tuple[object, str]
    broken: Callable[..., object]
    caught_by: Callable[[], None]


def again(*, invites_the_victim: bool) -> Callable[[], None]:
    return lambda: test_further_attacks.test_one_update_in_two_sums(5, invites_the_victim, new_epoch=False)


def other(field: Literal["weights", "config", "layout"]) -> Callable[[], None]:
    return lambda: test_attack_views.test_other_terms_to_one_silo(field)


VARIANTS = [
    Variant("32-bit seed", (keys, "mask_seed"), narrow_seed, test_attack_restarts.test_seeds_have_256_bits),
    Variant("reused b_i", (silo, "_new_record"), reused_self_seed, test_attack_restarts.test_steps_share_no_secret),
    Variant(
        "repeated key and nonce",
        (keys, "bundle_key"),
        one_bundle_key,
        every_bundle_has_a_key_of_its_own,
    ),
    Variant(
        "repeated key and nonce after a restart",
        (silo, "make_shares"),
        fresh_shares,
        test_attack_restarts.test_the_same_request_gives_the_same_bytes,
    ),
    Variant("unbound roster", (silo, "roster_hash"), roster_hash_of_the_run, test_attack_roster.test_a_stripped_roster),
    Variant("unbound weights", (StepTerms, "context"), without_weights, other("weights")),
    Variant("unbound config", (StepTerms, "context"), without_config, other("config")),
    Variant(
        "unbound silos",
        (StepTerms, "context"),
        without_silos,
        test_attack_views.test_a_known_step_with_other_silos,
    ),
    Variant("unsigned key", (roster, "check_key"), believed_key, test_attack_roster.test_swapped_keys),
    Variant("replayed key", (roster, "check_key"), believed_key, test_attack_roster.test_replayed_keys),
    Variant("x-coordinate zero", (bundles, "split"), shares_from_zero, test_attack_bundles.test_no_share_is_the_secret),
    Variant("wrong modulus", (fixedpoint, "limit_for"), too_wide, test_fixedpoint.test_sums_at_the_bound_fit),
    Variant("rounding down", (fixedpoint, "_round"), rounds_down, test_fixedpoint.test_rounding_has_no_bias),
    Variant("mask of one pair missing", (silo, "masks"), a_mask_missing, the_sum_is_exact),
    Variant("no self mask", (silo, "masks"), no_self_mask, the_sum_is_exact),
    Variant("masks with one sign", (silo, "masks"), masks_all_added, the_sum_is_exact),
    Variant("unsigned cohort", (silo, "check_signatures"), unsigned_cohort, split_views_give_nothing),
    Variant("low threshold", (terms, "threshold"), low_threshold, test_attack_views.test_two_halves),
    Variant("two cohorts", (silo, "_record_of"), forgets_its_cohort, test_attack_views.test_a_second_cohort_for_a_step),
    Variant(
        "no ratchet",
        (keys, "next_chain_key"),
        same_chain_key,
        test_attack_restarts.test_old_steps_cannot_be_derived_from_todays_disk,
    ),
    Variant(
        "new draws for an old step",
        (silo, "_train_part"),
        draws_again,
        test_attack_restarts.test_the_same_request_gives_the_same_bytes,
    ),
    Variant(
        "another update under old masks",
        (silo, "_check_update"),
        any_update,
        test_attack_restarts.test_the_same_request_gives_the_same_bytes,
    ),
    Variant("uncounted", (silo, "_agreed"), uncounted, test_attack_views.test_the_same_weights_for_other_silos),
    Variant("cohorts not compared", (rules, "_released"), without_looking, again(invites_the_victim=True)),
    Variant("other silos not noticed", (rules, "_names_digest"), all_the_same, again(invites_the_victim=False)),
    Variant(
        "names pinned, not keys",
        (SiloRules, "check_known"),
        believed_key,
        test_further_attacks.test_a_silo_that_is_pinned_with_another_key_in_mid_epoch,
    ),
    Variant(
        "no self mask on late uploads",
        (silo, "masks"),
        no_self_mask,
        test_further_attacks.test_a_late_upload_stays_masked,
    ),
    Variant("unordered", (rules, "in_order"), takes_any_order, test_attack_bundles.test_cohorts_that_are_not_signed),
    Variant("forgetful of runs", (state, "open_run"), any_run, test_attack_restarts.test_a_run_id_used_again),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_broken_variant_is_caught(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    variant.caught_by()
    world._begun.cache_clear()
    where, name = variant.where
    for module in (where, test_attack_restarts) if name == "open_run" else (where,):
        monkeypatch.setattr(module, name, variant.broken)
    try:
        with pytest.raises((AssertionError, pytest.fail.Exception, RefusedError)):
            variant.caught_by()
    finally:
        monkeypatch.undo()
        world._begun.cache_clear()


def test_every_variant_has_a_name_of_its_own() -> None:
    names = [variant.name for variant in VARIANTS]
    assert not [a for a, b in itertools.combinations(names, 2) if a == b]
    assert len(names) >= 15
