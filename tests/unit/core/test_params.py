"""Groups, the layout's fingerprint, and the flat vector."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplat.errors import LayoutError
from fedplat.params import Group, Layout, Parameter
from fedplat.spec import ModelSection

MODEL = (
    Parameter("body.weight", (3, 2), "float32"),
    Parameter("body.bias", (3,), "float16"),
    Parameter("norm.count", (), "int64"),
    Parameter("head.weight", (2, 3), "bfloat16"),
)


def section(**patterns: tuple[str, ...]) -> ModelSection:
    return ModelSection.model_validate(patterns)


def test_frozen_before_local_before_shared() -> None:
    layout = Layout.assign(MODEL, section(shared=("*",), local=("head.*", "body.bias"), frozen=("*.bias",)))
    assert layout.names(Group.FROZEN) == ("body.bias",)
    assert layout.names(Group.LOCAL) == ("norm.count", "head.weight")
    assert layout.names(Group.SHARED) == ("body.weight",)
    assert layout.size == 6


def test_integer_buffers_are_local_unless_frozen() -> None:
    assert Layout.assign(MODEL, section()).names(Group.LOCAL) == ("norm.count",)
    assert Layout.assign(MODEL, section(shared=("*", "norm.count"))).names(Group.LOCAL) == ("norm.count",)
    assert Layout.assign(MODEL, section(frozen=("norm.*",))).names(Group.FROZEN) == ("norm.count",)


@pytest.mark.parametrize("group", ["shared", "local", "frozen"])
def test_pattern_that_matches_nothing(group: str) -> None:
    with pytest.raises(LayoutError, match=rf"'haed\.\*' in \[model\] {group} matches no parameter") as caught:
        Layout.assign(MODEL, section(**{"shared": ("*",), group: ("*.weight", "haed.*")}))
    assert "head.weight" in caught.value.hint


def test_patterns_are_case_sensitive() -> None:
    with pytest.raises(LayoutError, match="matches no parameter"):
        Layout.assign(MODEL, section(local=("HEAD.*",)))


def test_groups_are_case_sensitive() -> None:
    both = (Parameter("Head.weight", (1,), "float32"), Parameter("head.weight", (1,), "float32"))
    assert Layout.assign(both, section(local=("head.*",))).names(Group.SHARED) == ("Head.weight",)


def test_parameter_in_no_group() -> None:
    with pytest.raises(LayoutError, match=r"'head\.weight' is in no group"):
        Layout.assign(MODEL, section(shared=("body.*",)))


def test_nothing_shared() -> None:
    with pytest.raises(LayoutError, match="nothing to train together"):
        Layout.assign(MODEL, section(local=("*",)))


def test_fingerprint_covers_shared_and_frozen_only() -> None:
    def fingerprint(*parameters: Parameter) -> str:
        return Layout.assign(parameters, section(local=("head.*",), frozen=("body.bias",))).fingerprint

    base = fingerprint(*MODEL)
    weight, bias, count, head = MODEL
    assert fingerprint(weight, bias, count, Parameter("head.weight", (7, 3), "float32")) == base
    assert fingerprint(weight, bias, head, Parameter("head.count", (), "int32")) == base
    others = [
        fingerprint(Parameter("body.weight", (2, 3), "float32"), bias, count, head),
        fingerprint(Parameter("body.weights", (3, 2), "float32"), bias, count, head),
        fingerprint(Parameter("body.weight", (3, 2), "float64"), bias, count, head),
        fingerprint(weight, Parameter("body.bias", (4,), "float16"), count, head),
        fingerprint(bias, weight, count, head),
        Layout.assign(MODEL, section(local=("head.*",))).fingerprint,
    ]
    assert len({base, *others}) == 7


def test_fingerprint_is_pinned() -> None:
    expected = "2606c0186c33b59e05152c5942e801cd1845ffac95ec5906c01fa276eb6741e8"
    assert Layout.assign(MODEL, section(local=("head.*",))).fingerprint == expected


shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=6)


@settings(deadline=None)
@given(shapes.filter(lambda found: any(np.prod(s) > 0 for s in found)), st.integers(0, 2**32 - 1))
def test_split_and_join_are_inverse(found: list[tuple[int, ...]], seed: int) -> None:
    layout = Layout.assign([Parameter(f"p{i}", s, "float32") for i, s in enumerate(found)], section())
    vector = np.random.default_rng(seed).normal(size=layout.size).astype(np.float32)
    arrays = layout.split(vector)
    assert [a.shape for a in arrays.values()] == found
    assert np.concatenate([a.ravel() for a in arrays.values()]).tobytes() == vector.tobytes()
    assert layout.join(arrays).tobytes() == vector.tobytes()


def test_split_gives_views() -> None:
    layout = Layout.assign(MODEL, section())
    vector = np.zeros(layout.size, dtype=np.float32)
    layout.split(vector)["body.bias"][...] = 1
    assert vector.tolist() == [0] * 6 + [1] * 3 + [0] * 6


def test_join_takes_what_it_needs_in_layout_order() -> None:
    layout = Layout.assign(MODEL, section(local=("head.*",)))
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "head.weight": np.ones((9, 9)),
        "body.bias": np.arange(3, dtype=np.float16),
        "body.weight": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    }
    assert layout.join(arrays).tolist() == [0, 3, 1, 4, 2, 5, 0, 1, 2]


def test_what_does_not_fit_is_refused() -> None:
    layout = Layout.assign(MODEL, section(local=("head.*",)))
    with pytest.raises(LayoutError, match="8 elements does not fit a layout of 9"):
        layout.split(np.zeros(8, dtype=np.float32))
    with pytest.raises(LayoutError, match=r"'body\.bias' is missing"):
        layout.join({"body.weight": np.zeros((3, 2))})
    with pytest.raises(LayoutError, match=r"'body\.weight' has shape \(2, 3\), not \(3, 2\)"):
        layout.join({"body.weight": np.zeros((2, 3)), "body.bias": np.zeros(3)})
