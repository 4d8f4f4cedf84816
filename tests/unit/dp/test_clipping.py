"""Clipped sums against `vmap(grad)`: every supported layer, random compositions, and what goes to the fallback."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedplat_silo.trainer.dp import layers
from fedplat_silo.trainer.dp.bookkeeping import Bookkeeping
from fedplat_silo.trainer.dp.engine import Engine, Unsuitable
from fedplat_silo.trainer.dp.fallback import OpacusHooks
from fedplat_silo.trainer.dp.preparing import choose_engine
from fedplat_silo.trainer.dp.training import clip_factors
from tests.unit.dp.world import Toy, by_engine, by_vmap, make_examples, make_spec

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
Make = Callable[[], nn.Module]


class Permuted(nn.Module):
    """Channels last, for layers that normalise or project the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


CASES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "linear over positions, ghost": (lambda: nn.Linear(20, 30), (5, 20)),
    "linear over positions, instantiated": (lambda: nn.Linear(3, 4), (9, 3)),
    "linear over a plane": (lambda: nn.Linear(8, 9), (2, 3, 8)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 10)),
    "conv1d, ghost": (lambda: nn.Conv1d(16, 16, 5, stride=3), (16, 11)),
    "conv1d, same": (lambda: nn.Conv1d(3, 4, 4, padding="same", dilation=2), (3, 10)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3), (3, 8, 8)),
    "conv2d, odd in all": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        (4, 9, 7),
    ),
    "conv2d, ghost, groups": (lambda: nn.Conv2d(16, 16, 3, stride=2, groups=2, padding=1), (16, 5, 5)),
    "conv2d, pointwise": (lambda: nn.Conv2d(4, 3, 1), (4, 5, 5)),
    "conv2d, pointwise, strided": (lambda: nn.Conv2d(4, 3, 1, stride=2), (4, 5, 5)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 3, 4, 5)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6)), (2, 6, 6)),
    "group norm of vectors": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6)), (4,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), (5, 4)),
    "layer norm of a plane": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), (3, 4)),
}


def data(shape: tuple[int, ...], dtype: torch.dtype, count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = (torch.randn(*s, generator=generator, dtype=dtype) for s in ((count, *shape), (count,)))
    return 2 * inputs, targets


def assert_equals_vmap(engine: type[Engine], model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    dtype = targets.dtype
    each = by_vmap(model, inputs, targets)
    true = torch.linalg.vector_norm(each, dim=1)
    clip = float(true.median())  # some are clipped, some are not
    norms, clipped = by_engine(engine, model, inputs, targets, lambda n: clip_factors(n, clip))
    expected = clip_factors(true, clip) @ each
    assert float(((norms - true).abs() / true.clamp(min=1e-20)).max()) <= TOLERANCE[dtype]
    assert float((clipped - expected).norm() / expected.norm()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_every_layer(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    make, shape = CASES[case]
    assert_equals_vmap(Bookkeeping, make().to(dtype), *data(shape, dtype))


class Words(nn.Module):
    """Words at positions, as in a text."""

    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4, padding_idx=padding)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.norm(self.words(x))))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("padding", [None, 2])
def test_words_that_occur_many_times(padding: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = torch.randint(0, 5, (6, 8))
    targets = torch.randn(6, dtype=dtype)
    model = Words().to(dtype)
    if padding is None:
        assert_equals_vmap(Bookkeeping, model, inputs, targets)
        return
    # `vmap` does not know of padding: the gradient of that word is zero
    padded = Words(padding).to(dtype)
    padded.load_state_dict(model.state_dict())
    _, sums = by_engine(Bookkeeping, padded, inputs, targets, torch.ones_like)
    losses = (padded(inputs).flatten(1) - targets[:, None]).square().mean(1)
    found = torch.autograd.grad(losses.sum(), list(padded.parameters()))
    torch.testing.assert_close(sums, torch.cat([f.flatten() for f in found]), atol=1e-6, rtol=1e-6)
    assert not sums[padding * 4 : padding * 4 + 4].any()


vectors = st.sampled_from(["linear", "norm", "tanh"])
images = st.sampled_from(["conv", "pointwise", "wide", "norm", "relu", "depthwise"])


def build_vector(kinds: list[str]) -> nn.Module:
    width, parts = 5, list[nn.Module]()
    for kind in kinds:
        if kind == "linear":
            parts.append(nn.Linear(width, width + 2))
            width += 2
        else:
            parts.append(nn.LayerNorm(width) if kind == "norm" else nn.Tanh())
    return nn.Sequential(*parts, nn.Linear(width, 2))


def build_image(kinds: list[str]) -> nn.Module:
    channels, parts = 4, list[nn.Module]()
    for kind, before in zip(kinds, ["", *kinds], strict=False):
        if kind == before == "relu":
            continue  # two in place in a row are too much for the reference
        layer = {
            "conv": lambda c: nn.Conv2d(c, c + 4, 3, padding=1),
            "pointwise": lambda c: nn.Conv2d(c, c, 1, bias=False),
            "wide": lambda c: nn.Conv2d(c, c + 4, 3, stride=2, padding=2, dilation=2),
            "norm": lambda c: nn.GroupNorm(2, c),
            "relu": lambda _: nn.ReLU(inplace=True),
            "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
        }[kind](channels)
        channels = layer.out_channels if isinstance(layer, nn.Conv2d) else channels
        parts.append(layer)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *parts, nn.Flatten(2), Permuted(), nn.Linear(channels, 2))


@settings(max_examples=25, deadline=None)
@given(kinds=st.lists(vectors, min_size=1, max_size=5), positions=st.sampled_from([(), (1,), (3,), (2, 4)]))
def test_random_models_of_vectors(kinds: list[str], positions: tuple[int, ...]) -> None:
    torch.manual_seed(len(kinds))
    assert_equals_vmap(Bookkeeping, build_vector(kinds).double(), *data((*positions, 5), torch.float64))


@settings(max_examples=25, deadline=None)
@given(kinds=st.lists(images, min_size=1, max_size=5), size=st.integers(5, 9))
def test_random_models_of_images(kinds: list[str], size: int) -> None:
    torch.manual_seed(len(kinds))
    assert_equals_vmap(Bookkeeping, build_image(kinds).double(), *data((2, size, size + 1), torch.float64, count=4))


def test_frozen_parameters_count_for_nothing() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.GroupNorm(2, 4)).double()
    for frozen in (model[0].weight, model[2].bias, model[3].weight):
        frozen.requires_grad_(False)
    assert_equals_vmap(Bookkeeping, model, *data((5,), torch.float64))


def test_rows_of_a_patient_are_one_gradient() -> None:
    torch.manual_seed(0)
    models = [
        (build_image(["conv", "norm", "wide", "depthwise"]).double(), (2, 6, 6)),
        (build_vector(["linear", "norm"]).double(), (5,)),
        (build_vector(["linear", "norm"]).double(), (3, 5)),
    ]
    for model, shape in models:
        inputs, targets = data(shape, torch.float64, count=12)
        each = by_vmap(model, inputs, targets).view(4, 3, -1).sum(1)
        for engine in (Bookkeeping, OpacusHooks):
            with engine(model) as entered:
                outputs = entered.model(inputs)
                losses = (outputs.flatten(1) - targets[:, None]).square().mean(1)
                norms = entered.norms(losses.sum(), 4)
                sums: dict[Tensor, Tensor] = {p: torch.zeros_like(p).flatten() for p in entered.parameters}
                entered.add_clipped(torch.arange(1.0, 5).double(), sums)
            torch.testing.assert_close(norms.detach(), torch.linalg.vector_norm(each, dim=1), rtol=1e-10, atol=0)
            expected = torch.arange(1.0, 5).double() @ each
            torch.testing.assert_close(torch.cat(list(sums.values())), expected, rtol=1e-10, atol=1e-12)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(torch.tanh(self.a(x)))
        return out


class Unknown(nn.Module):
    """A parameter of its own beside a known layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.scale)


class Functional(nn.Module):
    """Uses a layer's weight behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(torch.tanh(x @ self.a.weight))
        return out


class Changed(nn.Module):
    """What a layer got is changed afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        out: Tensor = self.a(x)
        x.mul_(2)
        return out


FOREIGN: dict[str, Make] = {
    "tied": Tied,
    "reused": Reused,
    "unknown": lambda: nn.Sequential(Unknown(), nn.Linear(5, 3)),
    "subclass": lambda: nn.Sequential(type("Mine", (nn.Linear,), {})(5, 3)),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_models_go_to_the_fallback_and_are_right_there(case: str) -> None:
    torch.manual_seed(0)
    model = FOREIGN[case]()
    assert choose_engine(Toy(make_spec()), model, make_examples()) is OpacusHooks
    assert_equals_vmap(OpacusHooks, model.double(), *data((5,), torch.float64))
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())


@pytest.mark.parametrize("make", [Reused, Changed])
def test_what_shows_only_in_the_forward_pass_is_noticed_there(make: Make) -> None:
    with pytest.raises(Unsuitable):
        by_engine(Bookkeeping, make().double(), *data((5,), torch.float64), torch.ones_like)


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(nn.Linear(5, 3)), lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))]
)
def test_known_models_need_no_fallback(make: Make) -> None:
    assert choose_engine(Toy(make_spec()), make(), make_examples()) is Bookkeeping


def test_a_gradient_that_cancels_out_is_never_clipped_too_little() -> None:
    """Large terms at two positions whose sum is small: in float32 the ghost norm is nothing but rounding."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    a, g = torch.randn(8, 1, 64).expand(8, 2, 64).contiguous(), torch.randn(8, 2, 64) * 1e3
    g[:, 1] = -g[:, 0] * (1 - 1e-4)
    [share] = layers.linear(layer, layers.Seen(a, g, 8))
    true = torch.einsum("uti,uto->uoi", a.double(), g.double()).flatten(1).norm(dim=1)
    assert bool((share.squared.double().sqrt() >= 0.999 * true).all())
