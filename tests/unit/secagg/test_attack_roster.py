"""A server that invents, strips, swaps or replays who takes part gets nothing."""

from __future__ import annotations

from fedplat.identity.signing import Label, sign
from fedplat.secagg.errors import Refusal
from fedplat.secagg.messages import Roster, SignedKey
from fedplat.secagg.roster import make_roster, sign_key
from tests.unit.secagg.world import (
    BINDING,
    World,
    build,
    identity,
    members,
    refused,
    upload_all,
)


def next_epoch(world: World) -> dict[str, SignedKey]:
    return {s.name: s.key(2) for s in world.silos}


def roster_of(*signed: SignedKey) -> Roster:
    return Roster(epoch=2, first_step=1, keys=tuple(sorted(signed, key=lambda key: key.name)))


def test_a_stripped_roster() -> None:
    """Whoever is shown fewer silos masks for nobody else."""
    world = build(5)
    signed = next_epoch(world)
    full, stripped = roster_of(*signed.values()), roster_of(*list(signed.values())[:4])
    world.roster = full
    for s in world.silos:
        s.take(stripped if s.number == 0 else full)
    invited = world.names[:4]
    terms = world.terms(1, invited)
    _, parts = upload_all(world, terms)
    assert world.server(terms).left_out(parts) == (world.names[0],)
    refused(Refusal.ROSTER_CHANGED, world.silos[0].take, full)


def test_a_roster_without_the_silo_or_with_too_few() -> None:
    world = build(4)
    signed = next_epoch(world)
    refused(Refusal.ROSTER_INVALID, world.silos[0].take, roster_of(*list(signed.values())[1:]))
    refused(Refusal.SILOS_TOO_FEW, world.silos[0].take, roster_of(*list(signed.values())[:2]))


def test_an_invented_silo_under_a_known_name() -> None:
    world = build(3)
    signed = next_epoch(world)
    invented = sign_key(identity(40), BINDING, 2, world.names[2], bytes([7]) * 32)
    roster = roster_of(*list(signed.values())[:2], invented)
    assert refused(Refusal.PEER_CHANGED, world.silos[0].take, roster).silo == world.names[2]
    refused(Refusal.PEER_CHANGED, make_roster, BINDING, 2, 1, roster.keys, world.silos[0].rules.known)


def test_invented_silos_under_new_names_do_not_make_up_for_pinned_ones() -> None:
    """Three invented silos of five reach every threshold by themselves."""
    world = build(5)
    pinned = frozenset(world.names[:2])
    for pins, works in [(pinned, False), (frozenset(world.names), True)]:
        world.silos[0].insists(min_pinned_cohort=2, pinned=pins)
        if works:
            world.silos[0].train(world.terms(2))
        else:
            refused(Refusal.PEERS_UNCONFIRMED, world.silos[0].train, world.terms(1))


def test_a_cohort_with_too_few_confirmed_silos() -> None:
    world = build(10)
    world.silos[0].insists(min_pinned_cohort=7, pinned=frozenset(world.names[1:]) - {world.names[8]})
    terms = world.terms()
    _, parts = upload_all(world, terms)
    server = world.server(terms)
    few = members(parts, [*terms.silos[:6], terms.silos[8]])
    question = server.agree_question(terms.silos[0], few, parts)
    refused(Refusal.PEERS_UNCONFIRMED, world.silos[0].agree, question)


def test_one_silo_under_two_names() -> None:
    world = build(3)
    signed = next_epoch(world)
    twin = sign_key(identity(0), BINDING, 2, "silo-99", bytes([7]) * 32)
    refused(Refusal.ROSTER_INVALID, world.silos[0].take, roster_of(*signed.values(), twin))


def test_swapped_keys() -> None:
    world = build(3)
    a, b, c = next_epoch(world).values()
    swapped = b.model_copy(update={"public_key": c.public_key}), c.model_copy(update={"public_key": b.public_key})
    refused(Refusal.SIGNATURE, world.silos[0].take, roster_of(a, *swapped))


def test_keys_of_low_order() -> None:
    """A silo that signs one shares a secret with everybody that the server knows."""
    world = build(3)
    a, b, _ = next_epoch(world).values()
    fp = world.silos[0].rules.known[world.names[2]]
    for low in (bytes(32), bytes([1]) + bytes(31)):
        fields = (BINDING.ca_fingerprint, BINDING.run, BINDING.spec_hash, 2, world.names[2], fp, low)
        key = sign_key(identity(2), BINDING, 2, world.names[2], bytes([7]) * 32)
        signature = sign(identity(2), Label.ROSTER, "fedplat/secagg/1/key", *fields)
        bad = key.model_copy(update={"public_key": low, "signature": signature})
        assert refused(Refusal.PEER_KEY, world.silos[0].take, roster_of(a, b, bad)).silo == bad.name


def test_replayed_keys() -> None:
    """Of another epoch, and of another run."""
    world = build(3)
    old = world.roster.keys[2]
    a, b, _ = next_epoch(world).values()
    refused(Refusal.SIGNATURE, world.silos[0].take, roster_of(a, b, old))
    elsewhere = BINDING.model_copy(update={"run": "run-2"})
    other = sign_key(identity(2), elsewhere, 2, world.names[2], bytes([7]) * 32)
    refused(Refusal.SIGNATURE, world.silos[0].take, roster_of(a, b, other))


def test_a_closed_epoch() -> None:
    world = build(3)
    old = world.roster
    world.new_epoch(2, 1)
    refused(Refusal.EPOCH_CLOSED, world.silos[0].key, 1)
    refused(Refusal.EPOCH_CLOSED, world.silos[0].take, old)
