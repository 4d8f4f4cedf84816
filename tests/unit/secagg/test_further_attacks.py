"""Attacks over several messages: one update in two sums, a roster that turns out wrong, old disks, other orders."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest

from fedplat.identity.keys import fingerprint
from fedplat.secagg import prg
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import AgreeQuestion, Member, Roster, SignedKey, UnmaskQuestion
from fedplat.secagg.roster import RunBinding, fingerprints, sign_key
from fedplat.secagg.state import SiloState, finish, open_run
from tests.unit.secagg.world import (
    BINDING,
    World,
    agree_all,
    build,
    identity,
    members,
    plain_sum,
    refused,
    run_step,
    sum_of,
    unmask_all,
    update_of,
    upload_all,
)


def opened(world: World, step: int, invited: Sequence[str], cohort: Sequence[str], asked: Sequence[str]) -> prg.Words:
    """The sum over this cohort, opened with the help of no more silos than are asked. RefusedError if they do not."""
    terms = world.terms(step, invited)
    uploads, parts = {}, {}
    for name in terms.silos:
        with suppress(RefusedError):
            uploads[name], parts[name] = world[name].train(terms)
    if not set(cohort) <= set(parts):
        raise RefusedError(Refusal.COHORT_TOO_SMALL)
    server, chosen = world.server(terms), members(parts, cohort)
    agreed = {}
    for name in asked:
        with suppress(RefusedError):
            agreed[name] = world[name].agree(server.agree_question(name, chosen, parts))
    question = server.unmask_question(chosen, agreed)
    total = sum_of(uploads[name] for name in cohort)
    prg.apply(total, server.streams(chosen, parts, {name: world[name].unmask(question) for name in agreed}))
    return total


def update_by_difference(num_silos: int, invites_the_victim: bool, new_epoch: bool, first_asked: int) -> bool:
    """Whether the server gets a silo's update to the bit: everybody's sum, less that of the same round once more
    without the victim. It asks as few silos as it needs to, `first_asked` of them the first time."""
    world = build(num_silos)
    rest = world.names[1:]
    everybody = opened(world, 1, world.names, world.names, world.names[:first_asked])
    invited = world.names if invites_the_victim else rest
    if new_epoch:
        world.new_epoch(2, 2, invited)
    try:
        others = opened(world, 2, invited, rest, rest)
    except RefusedError:
        return False
    return bool((everybody - others == update_of(0)).all())


@pytest.mark.parametrize("new_epoch", [False, True])
@pytest.mark.parametrize("invites_the_victim", [False, True])
@pytest.mark.parametrize("num_silos", [4, 5, 7, 10])
def test_one_update_in_two_sums(num_silos: int, invites_the_victim: bool, new_epoch: bool) -> None:
    """A round that is "repeated" without one silo."""
    for first_asked in {num_silos // 2 + 1, num_silos}:
        assert not update_by_difference(num_silos, invites_the_victim, new_epoch, first_asked)


def test_the_same_cohort_again_tells_nothing_new() -> None:
    """A round that failed after its cohort was signed goes on with the same silos, also from fresh keys."""
    world = build(5)
    terms = world.terms(1)
    _, parts = upload_all(world, terms)
    server = world.server(terms)
    chosen = world.names[:4]
    agree_all(world, server, members(parts, chosen), parts)
    again = world.terms(2)
    _, parts = upload_all(world, again)
    server = world.server(again)
    assert [m.name for m in server.fix_cohort(parts)] == world.names
    cohort = server.fix_cohort(parts, shown=chosen)
    assert [m.name for m in cohort] == chosen
    late = {name: part for name, part in parts.items() if name != chosen[0]}
    refused(Refusal.COHORT_TOO_SMALL, server.fix_cohort, late, chosen)
    refused(Refusal.RELEASES_SPENT, agree_all, world, server, members(parts, world.names), parts)
    agree_all(world, server, cohort, parts)
    world.new_epoch(2, 3)
    total = opened(world, 3, world.names, chosen, chosen)
    assert (total == plain_sum(chosen)).all()


def test_an_administrator_may_allow_more_cohorts() -> None:
    world = build(4)
    for s in world.silos:
        s.insists(max_releases_per_model=2)
    run_step(world, world.terms(1))
    run_step(world, world.terms(2, world.names[:3]))
    refused(Refusal.RELEASES_SPENT, world.silos[0].train, world.terms(3, [*world.names[:2], world.names[3]]))
    world.silos[0].train(world.terms(3))


def test_the_same_weights_in_a_run_that_continues_this_one_or_its_sibling() -> None:
    """`fedplat run continue --from-round` trains from weights that were trained from before."""
    world = build(4)
    run_step(world, world.terms(1))
    parent = finish(world.silos[0].state)
    weights = world.terms(1).weights

    def child(run: str, *relatives: SiloState) -> SiloState:
        return open_run(None, BINDING.model_copy(update={"run": run}), parent.name, parent.family, relatives)

    first, second = child("run-2", parent), child("run-3", parent)
    assert first.family == second.family == parent.family == BINDING.run
    assert first.releases[weights] == parent.releases[weights]
    # What one sibling releases later, the other one must know at its next message, and so must the parent.
    signed = first.model_copy(update={"releases": first.releases | {"ee" * 32: parent.releases[weights]}})
    for kept, binding in ((second, second.binding), (parent, BINDING)):
        assert open_run(kept, binding, kept.name, "", [parent, signed]).releases == signed.releases
    assert open_run(parent, BINDING, parent.name, "", [parent, parent]) == parent


def with_an_invented_silo(world: World) -> Roster:
    """Three silos, one of them the server's own, under the name of a hospital that nobody has seen yet."""
    for s in world.silos:
        s.insists(known={name: fp for name, fp in s.rules.known.items() if name != world.names[2]})
    real = [s.key(2) for s in world.silos[:2]]
    invented = sign_key(identity(40), BINDING, 2, world.names[2], bytes([7]) * 32)
    return Roster(epoch=2, first_step=1, keys=(*real, invented))


def test_a_silo_that_is_pinned_with_another_key_in_mid_epoch() -> None:
    """Its name is confirmed, its key in the accepted roster is not."""
    world = build(3)
    roster = with_an_invented_silo(world)
    s = world.silos[0]
    s.take(roster)
    real = fingerprint(identity(2).public_key())
    believed = s.rules
    s.insists(known={**s.rules.known, world.names[2]: real}, pinned=frozenset(world.names[1:]), min_pinned_cohort=3)
    assert refused(Refusal.PEER_CHANGED, s.train, world.terms(1)).silo == world.names[2]
    pinned, s.rules = s.rules, believed
    _, part = s.train(world.terms(1))
    s.rules = pinned
    cohort = tuple(Member(name=name, upload_id=part.upload_id if name == s.name else bytes(16)) for name in world.names)
    question = AgreeQuestion(step=1, cohort=cohort, bundles={})
    assert refused(Refusal.PEER_CHANGED, s.agree, question).silo == world.names[2]


def test_what_a_silo_remembers_of_a_roster_is_not_itself() -> None:
    """Else it would refuse itself once it has a new key."""
    world = build(3)
    assert fingerprints(world.roster, without=world.names[0]).keys() == set(world.names[1:])


def test_another_first_step_to_one_silo() -> None:
    """Its chain keys begin elsewhere: nothing that it masks cancels."""
    world = build(4)
    signed = tuple(s.key(2) for s in world.silos)
    lie = Roster(epoch=2, first_step=9, keys=signed)
    world.roster = lie.model_copy(update={"first_step": 5})
    for s in world.silos:
        s.take(lie if s.number == 1 else world.roster)
    terms = world.terms(9)
    _, parts = upload_all(world, terms)
    assert world.server(terms).left_out(parts) == (world.names[1],)
    refused(Refusal.STEP_CLOSED, world.silos[1].train, world.terms(5))
    refused(Refusal.ROSTER_CHANGED, world.silos[1].take, world.roster)


def test_a_last_step() -> None:
    """A server that begins at the end of all numbers ends its run, and leaves a state that can be read."""
    world = build(3)
    last = 2**53 - 1
    world.new_epoch(2, last)
    assert (run_step(world, world.terms(last)) == plain_sum(world.names)).all()
    refused(Refusal.STEP_CLOSED, world.silos[0].train, world.terms(last - 1))
    fresh: list[SignedKey] = [s.key(3) for s in world.silos]
    refused(Refusal.STEP_CLOSED, world.silos[0].take, Roster(epoch=3, first_step=last, keys=tuple(fresh)))


def test_messages_before_their_time() -> None:
    world = build(4)
    s = world.silos[0]
    terms = world.terms(3)
    cohort = tuple(Member(name=name, upload_id=bytes(16)) for name in world.names)
    agree = AgreeQuestion(step=3, cohort=cohort, bundles={})
    unmask = UnmaskQuestion(step=3, cohort=cohort, signatures={})
    refused(Refusal.STEP_UNKNOWN, s.agree, agree)
    refused(Refusal.STEP_UNKNOWN, s.unmask, unmask)
    s.key(2)
    refused(Refusal.ROSTER_MISSING, s.train, terms)
    refused(Refusal.STEP_UNKNOWN, s.agree, agree)
    refused(Refusal.EPOCH_CLOSED, s.take, world.roster)
    refused(Refusal.EPOCH_CLOSED, s.take, world.roster.model_copy(update={"epoch": 3}))


def test_a_new_epoch_in_mid_step() -> None:
    """Whoever has offered a key for it has forgotten the step; with the others it is opened, or never."""
    world = build(5)
    terms = world.terms(1)
    uploads, parts = upload_all(world, terms)
    server = world.server(terms)
    cohort = members(parts, world.names)
    gone, stays = world.silos[0], world.names[1:4]
    gone.key(2)
    assert gone.state.record is None
    assert dict(gone.state.chains) == {}
    refused(Refusal.STEP_CLOSED, gone.agree, server.agree_question(gone.name, cohort, parts))
    refused(Refusal.ROSTER_MISSING, gone.train, terms)
    agreed = {name: world[name].agree(server.agree_question(name, cohort, parts)) for name in stays}
    question = server.unmask_question(cohort, agreed)
    refused(Refusal.STEP_CLOSED, gone.unmask, question)
    total = sum_of(uploads.values())
    prg.apply(total, server.streams(cohort, parts, {name: world[name].unmask(question) for name in stays}))
    assert (total == plain_sum(world.names)).all()
    # The others have signed, so they are not in a second sum; those who have not are too few for one.
    world.new_epoch(2, 2)
    for name in stays:
        refused(Refusal.RELEASES_SPENT, world[name].train, world.terms(2, world.names[:4]))


def test_a_restored_disk_masks_anew() -> None:
    """The pair masks of a step come again, from a disk of before it; the self mask does not, so that the two uploads
    do not tell how two updates differ."""
    world = build(4)
    s = world.silos[0]
    before = s.disk
    y, part = s.train(world.terms(1))
    s.disk = before
    s.spool[1] = update_of(0, 2)
    again, part_again = s.train(world.terms(1))
    assert part.checks == part_again.checks
    assert part.upload_id != part_again.upload_id
    assert not (y - again == update_of(0) - update_of(0, 2)).any()
    assert not set(part.bundles.values()) & set(part_again.bundles.values())


def test_a_late_upload_stays_masked() -> None:
    """When a cohort without a silo is opened, the server learns its pair masks, not its self mask."""
    world = build(4)
    terms = world.terms()
    uploads, parts = upload_all(world, terms)
    server = world.server(terms)
    late, rest = world.names[0], world.names[1:]
    cohort = members(parts, rest)
    agreed = agree_all(world, server, cohort, parts)
    answers = unmask_all(world, server, cohort, parts, server.unmask_question(cohort, agreed))
    y = uploads[late].copy()
    prg.apply(y, [prg.Stream(answers[name].seeds[late], -1) for name in rest])
    assert not (y == update_of(0)).any()
    assert all(late not in answer.self_shares for answer in answers.values())


def test_a_run_of_another_name_shares_nothing() -> None:
    world = build(3)
    other = RunBinding(ca_fingerprint=BINDING.ca_fingerprint, run="run-2", spec_hash=BINDING.spec_hash)
    fresh = open_run(None, other, world.names[0])
    assert (fresh.family, dict(fresh.releases), fresh.epoch) == ("run-2", {}, 0)
    assert np.array_equal(plain_sum(world.names), run_step(world, world.terms()))
