"""A server that shows different silos different things, or one update in two cohorts, gets nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from fedplat.secagg import prg
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import UnmaskAnswer, UnmaskQuestion
from fedplat.secagg.shamir import combine
from tests.unit.secagg.world import (
    agree_all,
    build,
    members,
    refused,
    run_step,
    upload_all,
)


@pytest.mark.parametrize("num_silos", [3, 5, 7, 9])
def test_different_cohorts_to_different_silos(num_silos: int) -> None:
    """One silo's update, with no colluder: t silos believe that it is in, the others that it is out."""
    assert split_views(num_silos) is None


def split_views(num_silos: int) -> prg.Words | None:
    """The victim's update, if the server gets it."""
    world = build(num_silos, min_cohort=2)
    terms = world.terms()
    uploads, parts = upload_all(world, terms)
    server, t = world.server(terms), terms.threshold
    victim, rest = terms.silos[0], terms.silos[1:]
    out, inside = rest[: t - 1], rest[t - 1 :]
    shown = {victim: (victim, *out)} | dict.fromkeys(inside, (victim, *inside)) | dict.fromkeys(out, (*out, inside[0]))
    answers: dict[str, UnmaskAnswer] = {}
    for name, view in shown.items():
        cohort = members(parts, view)
        same = [n for n in view if shown[n] == view]
        signed = {n: world[n].agree(server.agree_question(n, cohort, parts)) for n in same}
        question = UnmaskQuestion(
            step=1, cohort=cohort, signatures={n: answer.signature for n, answer in signed.items()}
        )
        try:
            answers[name] = world[name].unmask(question)
        except RefusedError:
            return None
    places = [(terms.silos.index(name) + 1, answers[name].self_shares[victim]) for name in (victim, *inside)]
    seeds = answers[victim].seeds | {name: answers[name].seeds[victim] for name in out}
    update = uploads[victim].copy()
    prg.apply(update, [prg.Stream(combine(places, t), -1), *(prg.Stream(seed, -1) for seed in seeds.values())])
    return update


@pytest.mark.parametrize("field", ["weights", "config", "layout"])
def test_other_terms_to_one_silo(field: Literal["weights", "config", "layout"]) -> None:
    """Its masks do not cancel, the server sees that, and its peers cannot open its bundle."""
    world = build(4)
    terms = world.terms()
    others = {"weights": terms.weights, "config": terms.config, "layout": terms.layout} | {field: "ee" * 32}
    other = replace(terms, weights=others["weights"], config=others["config"], layout=others["layout"])
    parts = {name: world[name].train(other if name == terms.silos[1] else terms)[1] for name in terms.silos}
    server = world.server(terms)
    assert server.left_out(parts) == (terms.silos[1],)
    cohort = members(parts, terms.silos)
    question = server.agree_question(terms.silos[0], cohort, parts)
    assert refused(Refusal.BUNDLE_INVALID, world[terms.silos[0]].agree, question).silo == terms.silos[1]


def test_another_threshold_or_other_silos_to_one_silo() -> None:
    world, other = build(5), build(5)
    terms = world.terms()
    victim = terms.silos[1]
    server = world.server(terms)
    _, parts = upload_all(world, terms)
    strong = parts | {victim: other[victim].train(replace(terms, strong=True))[1]}
    assert server.left_out(parts) == ()
    assert server.left_out(strong) == (victim,)
    fewer = build(5)[victim].train(replace(terms, silos=terms.silos[:4]))[1]
    assert refused(Refusal.BUNDLE_INVALID, server.check_upload, victim, fewer).silo == victim


def test_a_known_step_with_other_weights() -> None:
    world = build(3)
    terms = world.terms()
    upload_all(world, terms)
    for other in (replace(terms, weights="ee" * 32), replace(terms, config="ee" * 32), replace(terms, strong=True)):
        refused(Refusal.STEP_CHANGED, world.silos[0].train, other)


def test_a_known_step_with_other_silos() -> None:
    world = build(5)
    upload_all(world, world.terms())
    refused(Refusal.STEP_CHANGED, world.silos[0].train, world.terms(silos=[*world.names[:2], *world.names[3:]]))


def test_two_halves() -> None:
    """Two cohorts without a common silo: nobody would have to sign twice."""
    world = build(4, min_cohort=2)
    terms = world.terms()
    _, parts = upload_all(world, terms)
    for half in (terms.silos[:2], terms.silos[2:]):
        question = world.server(terms).agree_question(half[0], members(parts, half), parts)
        refused(Refusal.COHORT_TOO_SMALL, world[half[0]].agree, question)


def test_a_second_cohort_for_a_step() -> None:
    world = build(5)
    terms = world.terms()
    _, parts = upload_all(world, terms)
    server = world.server(terms)
    everybody, fewer = members(parts, terms.silos), members(parts, terms.silos[:4])
    agreed = agree_all(world, server, everybody, parts)
    refused(Refusal.COHORT_CHANGED, world.silos[0].agree, server.agree_question(terms.silos[0], fewer, parts))
    question = server.unmask_question(everybody, agreed)
    changed = question.model_copy(update={"cohort": fewer})
    refused(Refusal.COHORT_CHANGED, world.silos[0].unmask, changed)


def test_the_same_weights_for_other_silos() -> None:
    """Two sums over cohorts that differ by one silo give its update."""
    world = build(4)
    run_step(world, world.terms(1))
    refused(Refusal.RELEASES_SPENT, world.silos[0].train, world.terms(2, world.names[:3]))
    world.silos[0].train(world.terms(2, world.names[:3], weights="ee" * 32))


def test_the_same_weights_in_a_new_epoch() -> None:
    world = build(4)
    run_step(world, world.terms(1))
    world.new_epoch(2, 2, world.names[:3])
    refused(Refusal.RELEASES_SPENT, world.silos[0].train, world.terms(2, world.names[:3]))


def test_a_cohort_counts_from_its_signature() -> None:
    """The others can open it without this silo's answer."""
    world = build(4)
    terms = world.terms(1)
    _, parts = upload_all(world, terms)
    server = world.server(terms)
    agree_all(world, server, server.fix_cohort(parts), parts)
    refused(Refusal.RELEASES_SPENT, world.silos[0].train, world.terms(2, world.names[:3]))
