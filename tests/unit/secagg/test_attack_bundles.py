"""Share bundles, cohorts and signatures that are not what they seem: none is accepted."""

from __future__ import annotations

import pytest

from fedplat.secagg import keys, silo
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import AgreeQuestion, Member, TrainPart, UnmaskQuestion
from tests.unit.secagg.world import (
    World,
    agree_all,
    build,
    members,
    refused,
    upload_all,
)


def asked(world: World, step: int = 1) -> tuple[AgreeQuestion, dict[str, TrainPart]]:
    """The question to the first silo."""
    terms = world.terms(step)
    _, parts = upload_all(world, terms)
    server = world.server(terms)
    return server.agree_question(terms.silos[0], server.fix_cohort(parts), parts), parts


def with_bundle(question: AgreeQuestion, sender: str, bundle: bytes) -> AgreeQuestion:
    return question.model_copy(update={"bundles": question.bundles | {sender: bundle}})


def test_replayed_truncated_misdirected_and_missing_bundles() -> None:
    world = build(4)
    old, _ = asked(world, 1)
    question, parts = asked(world, 2)
    me, a, b, _ = world.names
    bad = {
        "replayed": old.bundles[a],
        "truncated": question.bundles[a][:-1],
        "a share less": question.bundles[a][:-32],
        "altered": bytes([question.bundles[a][0] ^ 1]) + question.bundles[a][1:],
        "for another silo": parts[a].bundles[b],
        "from another silo": question.bundles[b],
        "my own, sent back": parts[me].bundles[a],
    }
    for bundle in bad.values():
        error = refused(Refusal.BUNDLE_INVALID, world.silos[0].agree, with_bundle(question, a, bundle))
        assert error.silo == a
    without = question.model_copy(update={"bundles": {b: question.bundles[b]}})
    refused(Refusal.BUNDLE_INVALID, world.silos[0].agree, without)
    world.silos[0].agree(question)


def test_every_bundle_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed: list[bytes] = []

    def seal(key: bytes, *rest: object) -> bytes:
        sealed.append(key)
        return bytes(4 * 32 + 16)

    monkeypatch.setattr(silo, "seal", seal)
    world = build(4)
    upload_all(world, world.terms(1))
    upload_all(world, world.terms(2))
    assert len(set(sealed)) == len(sealed) == 2 * 4 * 3


def test_no_share_is_the_secret() -> None:
    world = build(3)
    terms = world.terms()
    upload_all(world, terms)
    for s in world.silos:
        record = s.state.record
        assert record is not None
        shares = silo._shares(s.name, record)
        secrets = {record.self_seed, *(keys.mask_seed(root) for root in record.roots.values())}
        assert not [1 for text in shares.values() for secret in secrets if secret in text]


def test_cohorts_that_are_not_signed() -> None:
    world = build(5)
    question, _ = asked(world)
    whole = question.cohort
    cases = {
        Refusal.COHORT_TOO_SMALL: [whole[:2]],
        Refusal.COHORT_INVALID: [
            whole[1:],
            whole[::-1],
            (whole[0], whole[0], *whole[1:]),
            (whole[0].model_copy(update={"upload_id": bytes(16)}), *whole[1:]),
            (*whole, Member(name="silo-99", upload_id=bytes(16))),
        ],
        Refusal.BUNDLE_INVALID: [(*whole[:4], whole[4].model_copy(update={"upload_id": bytes(16)}))],
    }
    for refusal, cohorts in cases.items():
        for cohort in cohorts:
            other = question.model_copy(update={"cohort": cohort})
            refused(refusal, world.silos[0].agree, other)
    assert world.silos[0].agree(question) == world.silos[0].agree(question)


def test_a_cohort_below_the_silos_own_minimum() -> None:
    world = build(5)
    question, _ = asked(world)
    world.silos[0].insists(min_cohort=5)
    few = question.model_copy(update={"cohort": question.cohort[:4]})
    refused(Refusal.COHORT_TOO_SMALL, world.silos[0].agree, few)


def test_nothing_is_opened_without_enough_signatures_of_members() -> None:
    world = build(5)
    terms = world.terms()
    _, parts = upload_all(world, terms)
    server = world.server(terms)
    cohort = members(parts, terms.silos[:4])
    refused(
        Refusal.NOT_AGREED,
        world.silos[0].unmask,
        UnmaskQuestion(step=1, cohort=cohort, signatures={}),
    )
    agreed = agree_all(world, server, cohort, parts)
    good = server.unmask_question(cohort, agreed)
    signatures = dict(good.signatures)
    first, second, third, fourth = signatures
    bad = [
        (Refusal.COHORT_INVALID, {n: signatures[n] for n in (first, second)}),
        (Refusal.SIGNATURE, {first: signatures[first], second: signatures[first], third: signatures[third]}),
        (
            Refusal.COHORT_INVALID,
            {n: signatures[n] for n in (first, second, fourth)} | {terms.silos[4]: signatures[first]},
        ),
    ]
    for refusal, some in bad:
        question = good.model_copy(update={"signatures": some})
        refused(refusal, world.silos[0].unmask, question)
    with pytest.raises(RefusedError):
        server.unmask_question(cohort, {first: agreed[first]})
    world.silos[0].unmask(good)
