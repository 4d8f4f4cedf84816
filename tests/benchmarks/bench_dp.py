"""What DP-SGD costs: the time of a private step over that of a plain one, beside Opacus' modes, on one core.

    python tests/benchmarks/bench_dp.py [--quick] [--json] [--device cuda]

Ours is the silo's own loop (sample, fetch, clip, noise, step), plain is its loop without privacy; both measure their
metrics. Opacus' steps (hooks, functorch, expanded weights, ghost) get batches of exactly the mean size, noise and
optimiser step, but neither sampler nor metrics. All take turns in the same process, and a factor is the median over
turns of one time by the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedplat.metrics import MetricSums
from fedplat.spec.model import TrainingSection
from fedplat.spec.privacy import PrivacyUnit
from fedplat_silo.data.examples import TensorExamples
from fedplat_silo.trainer.ddp import Place
from fedplat_silo.trainer.dp.bookkeeping import Bookkeeping
from fedplat_silo.trainer.dp.training import PrivateTerms, train_private
from fedplat_silo.trainer.dp.units import Units
from fedplat_silo.trainer.loop import LocalRound, train_batches

RATE = 0.1  # the share of the records that a batch has
CLIP, NOISE, LEARNING_RATE = 1.0, 1.0, 0.01
NUM_CLASSES = 10
MODES = ("hooks", "functorch", "ew", "ghost")
Step = Callable[[], None]


class Block(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(channels, channels, 1), nn.ReLU(), *_conv(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


class Attention(nn.Module):
    """A layer of a transformer, normalised first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mix(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.narrow(functional.gelu(self.wide(self.between(x))))


class Transformer(nn.Module):
    """Words in, classes out."""

    def __init__(self, words: int = 2000, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.layers = nn.Sequential(*(Attention(width, 4) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(self.layers(self.words(x)).mean(1)))
        return out


def _conv(num_in: int, num_out: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.GroupNorm(8, num_out)


def _linear(sizes: list[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for num_in, num_out in pairwise(sizes):
        parts += [nn.Linear(num_in, num_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _cnn() -> nn.Module:
    """The network of Opacus' MNIST example, 26 k parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, NUM_CLASSES)),
    )


def _resnet() -> nn.Module:
    """Three stages on 32 x 32 images, as for CIFAR-10."""
    stages = [16, 32, 64]
    parts: list[nn.Module] = [*_conv(3, 16, 1), nn.ReLU()]
    for num_in, num_out in zip([16, *stages], stages, strict=False):
        parts += [*_conv(num_in, num_out, 1 if num_in == num_out else 2), nn.ReLU(), Block(num_out)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, NUM_CLASSES))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


CASES = {
    "mlp": Case(lambda: _linear([256, 512, 256, 128, NUM_CLASSES]), (256,), 128),
    "cnn": Case(_cnn, (1, 28, 28), 128),
    "resnet_gn": Case(_resnet, (3, 32, 32), 32),
    "transformer": Case(Transformer, (32,), 32),
}


class Classifier:
    """As much of a task as the loops call."""

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs: Tensor = model(inputs)
        return outputs, functional.cross_entropy(outputs, targets, reduction="none")

    def sums(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> MetricSums:
        return MetricSums.of_classes(outputs.softmax(1).numpy(), targets.numpy(), losses.numpy())


def make_examples(case: Case) -> TensorExamples:
    """So many that a batch is `RATE` of them."""
    count = round(case.batch / RATE)
    inputs = torch.randint(0, 2000, (count, *case.shape)) if len(case.shape) == 1 and case.shape[0] == 32 else None
    inputs = torch.randn(count, *case.shape) if inputs is None else inputs
    return TensorExamples(inputs, torch.randint(0, NUM_CLASSES, (count,)))


def make_round(case: Case, examples: TensorExamples, steps: int, device: torch.device) -> LocalRound:
    training = TrainingSection(steps=steps, batch_size=case.batch, learning_rate=LEARNING_RATE)
    model = case.make().to(device)
    return LocalRound(model, examples, training, 1, Place(device=device), {}, 0.0, lambda share: None)


def plain(case: Case, examples: TensorExamples, steps: int, device: torch.device) -> Step:
    """A round of `steps` plain steps."""
    work = make_round(case, examples, steps, device)
    return lambda: _discard(train_batches(Classifier(), work))  # type: ignore[arg-type]


def private(case: Case, examples: TensorExamples, steps: int, device: torch.device) -> Step:
    """The same, private; a sample that is larger than its mean is not cut in two."""
    work = make_round(case, examples, steps, device)
    work.training = work.training.model_copy(update={"batch_size": 2 * case.batch})
    units = Units(examples, PrivacyUnit.RECORD)
    terms = PrivateTerms(units, Bookkeeping, CLIP, NOISE, RATE, case.batch, steps, True)
    return lambda: _discard(train_private(Classifier(), work, terms))  # type: ignore[arg-type]


def _discard(_: MetricSums) -> None:
    return None


def by_opacus(mode: str, case: Case, examples: TensorExamples, steps: int, device: torch.device) -> Step:
    """`steps` steps of Opacus in one of its modes."""
    from opacus.grad_sample.utils import wrap_model
    from opacus.optimizers.optimizer import DPOptimizer
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    is_ghost = mode == "ghost"
    clipping = {"max_grad_norm": CLIP, "use_ghost_clipping": True} if is_ghost else {}
    model = wrap_model(case.make().to(device), mode, loss_reduction="mean", **clipping)
    sgd = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    terms = {"noise_multiplier": NOISE, "max_grad_norm": CLIP, "expected_batch_size": case.batch}
    optimizer = (DPOptimizerFastGradientClipping if is_ghost else DPOptimizer)(sgd, **terms)
    loss_of = nn.CrossEntropyLoss()
    criterion = DPLossFastGradientClipping(model, optimizer, loss_of) if is_ghost else loss_of

    def run() -> None:
        for _ in range(steps):
            inputs, targets = examples.fetch(torch.randint(0, len(examples), (case.batch,)))
            optimizer.zero_grad()
            criterion(model(inputs.to(device)), targets.to(device)).backward()
            optimizer.step()

    return run


def time_case(case: Case, steps: int, turns: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds a step, turn by turn, by way of training, of those that can train this model."""
    torch.manual_seed(0)
    examples = make_examples(case)
    ways = {"plain": plain(case, examples, steps, device), "private": private(case, examples, steps, device)}
    for mode in MODES:
        with suppress(Exception):  # the boundary: what a mode of Opacus cannot train, it is not measured at
            way = by_opacus(mode, case, examples, steps, device)
            way()
            ways[mode] = way
    for name in ("plain", "private"):
        ways[name]()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            taken[name].append(_time(way, device) / steps)
    return taken


def slowdowns(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Each way of training over the plain one."""
    plain_s = seconds["plain"]
    return {name: statistics.median(a / b for a, b in zip(s, plain_s, strict=True)) for name, s in seconds.items()}


def _time(way: Step, device: torch.device) -> float:
    """On the CPU, seconds of the process: what others do on the machine does not count."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    begin = clock()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin


def lines(factors: dict[str, dict[str, float]], plain_s: dict[str, float]) -> Iterator[str]:
    """For people."""
    for model, by_way in factors.items():
        ways = "  ".join(f"{name} {by_way[name]:.2f}" for name in MODES if name in by_way)
        yield f"{model:12} {by_way['private']:.2f}   (Opacus: {ways}; plain {1e3 * plain_s[model]:.2f} ms)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    steps, turns = (4, 5) if options.quick else (5, 11)
    seconds = {name: time_case(CASES[name], steps, turns, options.device) for name in options.models}
    factors = {name: slowdowns(s) for name, s in seconds.items()}
    plain_s = {name: statistics.median(s["plain"]) for name, s in seconds.items()}
    result = {
        "slowdown": {name: f["private"] for name, f in factors.items()},
        "best_opacus_slowdown": {name: min(f[m] for m in MODES if m in f) for name, f in factors.items()},
        "slowdown_by_way": factors,
        "plain_seconds": plain_s,
        "device": str(options.device),
    }
    print(json.dumps(result) if options.json else "\n".join(lines(factors, plain_s)))


if __name__ == "__main__":
    main()
