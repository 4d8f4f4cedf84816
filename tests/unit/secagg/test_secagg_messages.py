"""What travels and what is kept: sizes are limited, nothing unknown is read, nothing secret is printed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedplat.errors import HomeError
from fedplat.identity.signing import enc
from fedplat.secagg.messages import AgreeAnswer, Member, Part, SignedKey, TrainPart, UnmaskAnswer
from fedplat.secagg.state import SiloState
from tests.unit.secagg.world import agree_all, build, members, travel, unmask_all, upload_all

FIELDS = st.lists(st.one_of(st.binary(max_size=20), st.text(max_size=20), st.integers()), max_size=5)


@given(FIELDS, FIELDS)
def test_different_fields_have_different_encodings(a: list[bytes | str | int], b: list[bytes | str | int]) -> None:
    same = [(type(x), x) for x in a] == [(type(x), x) for x in b]
    assert (enc(*a) == enc(*b)) is same


def test_fields_do_not_run_into_each_other() -> None:
    encodings = [enc("ab", "c"), enc("a", "bc"), enc("abc"), enc(b"ab", "c"), enc("ab", "c", ""), enc(1), enc("1")]
    assert len(set(encodings)) == len(encodings)


def some_parts() -> list[Part]:
    world = build(4)
    terms = world.terms()
    _, parts = upload_all(world, terms)
    server = world.server(terms)
    cohort = members(parts, terms.silos[:3])
    agreed = agree_all(world, server, cohort, parts)
    question = server.unmask_question(cohort, agreed)
    answers = unmask_all(world, server, cohort, parts, question)
    name = terms.silos[0]
    first = [world.roster, world.roster.keys[0], parts[name], server.agree_question(name, cohort, parts)]
    return [*first, agreed[name], question, answers[name], world[name].state]


PARTS = some_parts()


@pytest.mark.parametrize("part", PARTS, ids=lambda p: type(p).__name__)
def test_a_part_comes_back(part: Part) -> None:
    assert travel(part) == part
    assert type(part).model_validate(part.model_dump()) == part
    with pytest.raises(ValidationError):
        type(part).model_validate(part.model_dump() | {"more": 1})


@settings(max_examples=100)
@given(st.sampled_from(PARTS), st.data())
def test_a_damaged_part_is_refused_or_harmless(part: Part, data: st.DataObject) -> None:
    """Whatever is in the place of a field: a validation error or a part that travels, and nothing else."""
    content = json.loads(part.model_dump_json())
    field = data.draw(st.sampled_from(sorted(content)))
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=50))
    content[field] = data.draw(
        st.one_of(leaf, st.lists(leaf, max_size=3), st.dictionaries(st.text(), leaf, max_size=3))
    )
    try:
        read = type(part).model_validate_json(json.dumps(content))
    except ValidationError:
        return
    assert travel(read) == read


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (AgreeAnswer, {"step": 0, "signature": b"s" * 70}),
        (AgreeAnswer, {"step": 2**53, "signature": b"s" * 70}),
        (AgreeAnswer, {"step": 1, "signature": b"s" * 73}),
        (AgreeAnswer, {"step": 1, "signature": "no base64 !"}),
        (Member, {"name": "../etc", "upload_id": b"i" * 16}),
        (Member, {"name": "Silo", "upload_id": b"i" * 16}),
        (Member, {"name": "silo\n", "upload_id": b"i" * 16}),
        (Member, {"name": "silo", "upload_id": b"i" * 17}),
        (TrainPart, {"upload_id": b"i" * 16, "seed_hash": b"h" * 31, "checks": {}, "bundles": {}}),
        (TrainPart, {"upload_id": b"i" * 16, "seed_hash": b"h" * 32, "checks": {}, "bundles": {"a": b"b" * 5000}}),
        (
            TrainPart,
            {
                "upload_id": b"i" * 16,
                "seed_hash": b"h" * 32,
                "checks": {f"s{i}": b"c" * 16 for i in range(65)},
                "bundles": {},
            },
        ),
        (SignedKey, {"name": "a", "identity": "x" * 401, "public_key": b"k" * 32, "signature": b"s" * 70}),
        (UnmaskAnswer, {"step": 1, "self_shares": {"a": b"s"}, "seeds": {}, "pair_shares": {}}),
    ],
)
def test_what_is_too_long_or_misnamed(part: type[Part], change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        part.model_validate(change)


def test_secrets_are_not_printed() -> None:
    for part in PARTS:
        if isinstance(part, SiloState):
            assert part.record is not None
            assert part.record.agreed is not None
            printed = repr(part) + str(part)
            secret = [part.record.self_seed, part.record.own_secret, *part.record.roots.values(), *part.chains.values()]
            secret += part.record.agreed.answer.self_shares.values()
            assert not [s for s in secret if repr(s)[2:-1] in printed]
        if isinstance(part, UnmaskAnswer):
            assert repr(part) == "UnmaskAnswer(step=1)"


def test_a_damaged_state_says_what_to_do_and_quotes_nothing() -> None:
    state = PARTS[-1]
    assert isinstance(state, SiloState)
    text = state.to_json()
    assert SiloState.from_json(text) == state
    for damaged in ("", text[:-5], text.replace('"self_seed":"', '"self_seed":"!'), text[:-1] + ',"more":1}'):
        with pytest.raises(HomeError, match="damaged") as caught:
            SiloState.from_json(damaged)
        assert caught.value.__cause__ is None
        assert "next epoch" in caught.value.hint
