"""Asked again, restarted, restored or rolled back: a silo gives the same bytes, or nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest

from fedplat.errors import PolicyError
from fedplat.secagg import keys, prg, silo
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import Member, Roster, TrainPart
from fedplat.secagg.roster import RunBinding, roster_hash
from fedplat.secagg.rules import SiloRules
from fedplat.secagg.server import ServerStep
from fedplat.secagg.state import SiloState, close_step, finish, open_run
from tests.unit.secagg.world import (
    BINDING,
    World,
    agree_all,
    build,
    identity,
    members,
    name_of,
    plain_sum,
    refused,
    run_step,
    travel,
    unmask_all,
    update_of,
    upload_all,
)


def test_the_same_request_gives_the_same_bytes() -> None:
    """Also after the update was rounded anew: only the update of the first time leaves."""
    world = build(4)
    terms = world.terms()
    s = world.silos[0]
    y, part = s.train(terms)
    again, part_again = s.train(terms)
    assert (y == again).all()
    assert part == part_again
    s.spool[1] = update_of(0, 2)
    refused(Refusal.UPDATE_CHANGED, s.train, terms)
    refused(Refusal.UPDATE_CHANGED, silo.mask, s.state, 1, update_of(0, 2))


def test_a_run_id_used_again() -> None:
    world = build(3)
    run_step(world, world.terms())
    kept = SiloState.from_json(finish(world.silos[0].state).to_json())
    assert (kept.next_step, kept.record, dict(kept.chains)) == (2, None, {})
    for field in RunBinding.model_fields:
        other = BINDING.model_copy(update={field: "ab" * 32 if field != "run" else "run-2"})
        refused(Refusal.RUN_CHANGED, open_run, kept, other, kept.name)
    assert open_run(kept, BINDING, kept.name) == kept
    refused(Refusal.EPOCH_CLOSED, silo.offer_key, kept, identity(0), 1)


def test_the_servers_database_is_restored_to_an_older_step() -> None:
    world = build(4)
    old = world.terms(1)
    run_step(world, old)
    run_step(world, world.terms(5, weights="ee" * 32))
    assert refused(Refusal.STEP_CLOSED, world.silos[0].train, old).lowest_step == 6
    assert refused(Refusal.STEP_CLOSED, world.silos[0].train, world.terms(3)).lowest_step == 6
    refused(Refusal.STEP_CHANGED, world.silos[0].train, world.terms(5))
    refused(Refusal.STEP_JUMP, world.silos[0].train, world.terms(1006))
    world.silos[0].write(close_step(world.silos[0].state, 5))
    assert refused(Refusal.STEP_CLOSED, world.silos[0].train, world.terms(5)).lowest_step == 6
    assert (run_step(world, world.terms(6, weights="ff" * 32)) == plain_sum(world.names)).all()
    fresh = {s.name: s.key(2) for s in world.silos}
    too_low = Roster(epoch=2, first_step=6, keys=tuple(fresh.values()))
    assert refused(Refusal.STEP_CLOSED, world.silos[0].take, too_low).lowest_step == 7


def opened_twice(world: World, rolled_back: Sequence[str]) -> bool:
    """Whether the server opens two cohorts of one step, with the disks of some silos set back in between.

    The first cohort is shown to no more silos than it needs.
    """
    terms = world.terms()
    _, parts = upload_all(world, terms)
    server = world.server(terms)
    disks = {name: world[name].disk for name in rolled_back}
    rest = [name for name in terms.silos if name not in rolled_back]
    first = [*rolled_back, *rest[: terms.threshold - len(rolled_back)]]
    everybody, fewer = members(parts, terms.silos), members(parts, [n for n in terms.silos if n != first[-1]])
    assert opened(world, server, everybody, parts, first)
    for name, disk in disks.items():
        world[name].disk = disk
    return opened(world, server, fewer, parts, [m.name for m in fewer])


def opened(
    world: World, server: ServerStep, cohort: tuple[Member, ...], parts: dict[str, TrainPart], names: Sequence[str]
) -> bool:
    """Whether enough of these silos sign this cohort; then its masks are in the server's hands."""
    agreed = {}
    for name in names:
        with suppress(RefusedError):
            agreed[name] = world[name].agree(server.agree_question(name, cohort, parts))
    if len(agreed) < server.terms.threshold:
        return False
    question = server.unmask_question(cohort, agreed)
    return bool(server.streams(cohort, parts, {name: world[name].unmask(question) for name in agreed}))


@pytest.mark.parametrize(
    ("num_silos", "strong", "num_rolled_back", "opens"),
    [(5, True, 2, False), (10, True, 3, False), (4, False, 1, False), (5, False, 1, True), (5, True, 3, True)],
)
def test_disks_that_are_rolled_back(num_silos: int, strong: bool, num_rolled_back: int, opens: bool) -> None:
    """Within 2t > n + c + r no two cohorts are opened. Beyond it they are: the threat model says so."""
    world = build(num_silos, strong=strong)
    t = world.terms().threshold
    assert (2 * t <= num_silos + num_rolled_back) is opens
    assert opened_twice(world, world.names[:num_rolled_back]) is opens


def test_old_steps_cannot_be_derived_from_todays_disk() -> None:
    world = build(3)
    terms = world.terms(1)
    run_step(world, terms)
    s = world.silos[0]
    old, context = s.state, terms.context(roster_hash(BINDING, world.roster))
    assert old.record is not None
    run_step(world, world.terms(2, weights="ee" * 32))
    today = s.state
    assert today.record is not None
    assert today.private_key is None
    text = today.model_dump_json()
    gone = [old.record.self_seed, old.record.own_secret, *old.record.roots.values(), *old.chains.values()]
    gone += [keys.mask_seed(root) for root in old.record.roots.values()]
    assert not [secret for secret in gone if base64.b64encode(secret).decode() in text]
    held = [*today.chains.values(), *today.record.roots.values()]
    for _ in range(3):
        assert not {keys.step_root(key, context) for key in held} & set(old.record.roots.values())
        held = [keys.next_chain_key(key) for key in held]


def test_steps_share_no_secret() -> None:
    """What opens one step must not open another."""
    world = build(3)
    seen: list[bytes] = []
    for step in (1, 2):
        upload_all(world, world.terms(step))
        for s in world.silos:
            record = s.state.record
            assert record is not None
            seen += [record.self_seed, record.own_secret, record.upload_id]
            seen += [record.roots[peer] for peer in record.roots if peer > s.name]
    assert len(set(seen)) == len(seen)


def test_seeds_have_256_bits() -> None:
    """Every byte of a seed varies, of the pairs' as well as of the silos' own."""
    world = build(5)
    own, pairs = [], []
    for step in (1, 2, 3):
        upload_all(world, world.terms(step))
        for s in world.silos:
            record = s.state.record
            assert record is not None
            first, *rest = (m.seed for m in silo.masks(s.name, record))
            own.append(first)
            pairs += rest
    for seeds in (own, pairs):
        assert all(len(seed) == 32 for seed in seeds)
        assert all(len(set(column)) > 5 for column in zip(*seeds, strict=True))


def test_shares_that_do_not_give_what_was_committed_to() -> None:
    world = build(4)
    terms = world.terms()
    _, parts = upload_all(world, terms)
    server = world.server(terms)
    cohort = members(parts, terms.silos[:3])
    agreed = agree_all(world, server, cohort, parts)
    answers = unmask_all(world, server, cohort, parts, server.unmask_question(cohort, agreed))
    liar = cohort[0].name
    wrong = {member: bytes(32) for member in answers[liar].self_shares}
    lies = answers | {liar: answers[liar].model_copy(update={"self_shares": wrong})}
    refused(Refusal.SHARES_INVALID, server.streams, cohort, parts, lies)
    seeds = answers[liar].model_copy(update={"seeds": {terms.silos[3]: bytes(32)}})
    assert refused(Refusal.SHARES_INVALID, server.check_answer, liar, cohort, parts, seeds).silo == liar
    partial = answers[liar].model_copy(update={"self_shares": {}})
    refused(Refusal.SHARES_INVALID, server.check_answer, liar, cohort, parts, partial)
    few = {liar: answers[liar]}
    refused(Refusal.ANSWERS_TOO_FEW, server.streams, cohort, parts, few)


def test_uploads_that_are_not_complete() -> None:
    world = build(4)
    terms = world.terms()
    _, parts = upload_all(world, terms)
    server, name = world.server(terms), terms.silos[0]
    part = parts[name]
    changes: tuple[dict[str, object], ...] = (
        {"checks": {}},
        {"bundles": {}},
        {"bundles": {n: bytes(64) for n in part.bundles}},
    )
    for change in changes:
        bad = part.model_copy(update=change)
        refused(Refusal.BUNDLE_INVALID, server.check_upload, name, bad)
    refused(Refusal.BUNDLE_INVALID, server.check_upload, "silo-99", part)
    assert travel(part) == part


def test_a_policy_that_protects_nobody() -> None:
    with pytest.raises(PolicyError, match="min_cohort"):
        SiloRules(known={}, min_cohort=1)
    assert name_of(3) == "silo-03"


def chi_square(data: bytes) -> float:
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def test_uploads_are_uniform_also_summed_over_any_proper_subset() -> None:
    """A smoke test: 255 degrees of freedom, 7 standard deviations."""
    world = build(4)
    terms = world.terms()
    upload_all(world, terms)
    masked = []
    for s in world.silos:
        record = s.state.record
        assert record is not None
        y = np.full(1 << 16, 5, np.uint32)
        prg.apply(y, silo.masks(s.name, record))
        masked.append(y)
    for subset in range(1, 15):
        total = np.zeros(1 << 16, np.uint32)
        for i, y in enumerate(masked):
            if subset >> i & 1:
                total += y
        assert chi_square(total.tobytes()) < 255 + 7 * np.sqrt(2 * 255)
