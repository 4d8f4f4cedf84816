"""What a silo counts: by its records, like all others, or as the spec declares."""

from __future__ import annotations

import pytest

from fedplat.errors import SpecError
from fedplat.spec import RunSpec, parse_spec
from fedplat.spec.weighting import agreed_weight, largest_weight, weight_of

SPEC = """
name = "heart"
task = {{ name = "add_constant" }}
data = {{ name = "heart" }}
rounds = {{ count = 3 }}
training = {{ steps = 5 }}
silos = {{ names = [{names}] }}
{strategy}
"""
DECLARED = '[strategy]\nweighting = "declared"\nweights = { a = 2, b = 0.5 }'


def make(strategy: str, names: str = '"a", "b"') -> RunSpec:
    return parse_spec(SPEC.format(strategy=strategy, names=names))


@pytest.mark.parametrize(
    ("strategy", "agreed", "weighs", "largest"),
    [
        ("", None, 40, None),
        ("[secure_aggregation]\nmax_examples = 100", None, 40, 100),
        ('[strategy]\nweighting = "uniform"', 1.0, 1.0, 1.0),
        (DECLARED, 0.5, 0.5, 2.0),
    ],
)
def test_what_a_silo_counts(strategy: str, agreed: float | None, weighs: float, largest: float | None) -> None:
    spec = make(strategy)
    assert (agreed_weight(spec, "b"), weight_of(spec, "b", 40), largest_weight(spec)) == (agreed, weighs, largest)


@pytest.mark.parametrize(
    ("strategy", "names", "words"),
    [
        ('[strategy]\nweighting = "declared"', '"a"', "differ in a"),
        (DECLARED, "", "needs [silos] names"),
        (DECLARED, '"a"', "differ in b"),
        (DECLARED, '"a", "b", "c"', "differ in c"),
        ("[strategy]\nweights = { a = 1 }", '"a"', "need weighting = 'declared'"),
        (DECLARED.replace("0.5", "0"), '"a", "b"', "greater than 0"),
        (DECLARED.replace("0.5", "inf"), '"a", "b"', "strategy.weights"),
        (DECLARED.replace("0.5", "9007199254740992"), '"a", "b"', "less than"),
    ],
)
def test_weights_are_for_exactly_the_named_silos(strategy: str, names: str, words: str) -> None:
    with pytest.raises(SpecError) as error:
        make(strategy, names)
    assert words in str(error.value)
