"""A silo whose process, or whose machine, dies at any write of a private run: what left it is in its ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedplat import bufferfiles, durable
from fedplat.home import SiloHome
from fedplat.metrics import MetricSums
from fedplat.params import Vector
from fedplat.spec import RunSpec, parse_spec
from fedplat.wire.messages import EvaluateReply, EvaluateRequest, layout_from_wire
from fedplat_silo import accounts
from fedplat_silo.datasets import remember_datasets
from fedplat_silo.ledger import begin_book, find_book, receipts, rules, verify_book
from fedplat_silo.trainer.group import released_by
from tests.faults import test_silo_recovery
from tests.faults.test_silo_recovery import NotDone, RealSilo, data, joined  # noqa: F401 (the fixture)
from tests.support.crashes import Crash, CrashingFilesystem
from tests.support.membership import enrol
from tests.unit.ledger.scene import quick_epsilon

STEPS = 3
SPEC = f"""
name = "clinic"
data = {{ name = "clinic", test_share = 0.25 }}
rounds = {{ count = 2 }}
strategy = {{ weighting = "uniform" }}
[task]
name = "tabular"
[task.options]
target = {{ column = "ill", categories = ["no", "yes"] }}
features = [ {{ column = "age", kind = "numeric", center = 50, scale = 10 }} ]
[training]
steps = {STEPS}
batch_size = 8
[privacy]
mode = "record"
metrics = "noised"
metrics_noise_multiplier = 20.0
noise_multiplier = 1.0
delta = 1e-4
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rules, receipts, accounts):
        monkeypatch.setattr(module, "epsilon", quick_epsilon)


@dataclass
class Life:
    """A run of two rounds and the closing evaluation; the first round is asked for twice. `sent`:
    the updates that left, each once; `measured`: the figures that did."""

    home: SiloHome
    spec: RunSpec = field(default_factory=lambda: parse_spec(SPEC))
    sent: set[bytes] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)
    weights: Vector = field(default_factory=lambda: np.empty(0, dtype=np.float32))

    def run(self, disk: CrashingFilesystem, patch: pytest.MonkeyPatch) -> None:
        _use(disk, patch)
        silo = None
        for number, step in [(0, 0), (1, 1), (1, 2), (2, 3), (3, 4), (4, 0)]:
            try:
                silo = silo or RealSilo(self.home)
                self.ask(silo, number, step)
            except (Crash, NotDone):
                _use(durable.Filesystem(), patch)
                silo = RealSilo(self.home)
                self.ask(silo, number, step)
        _use(durable.Filesystem(), patch)

    def ask(self, silo: RealSilo, number: int, step: int) -> None:
        if number == 0:
            layout = layout_from_wire(joined(silo.join(self.spec)))
            self.weights = np.zeros(layout.size, dtype=np.float32)
        elif number < 3:
            reply = silo.train(self.spec, number, step=step, weights=self.weights)
            if reply.body.failed:
                raise NotDone(str(reply.body.failed))
            assert reply.body.trained is not None
            assert reply.body.trained.num_examples == 0, "figures of training steps stay here"
            self.sent.add(reply.buffer)
            self._left(reply.body.evaluated)
        elif number == 3:
            asked = EvaluateRequest(run="r-1", spec_hash=self.spec.hash, step=step, round=2)
            evaluated = silo.ask(asked, EvaluateReply, self.weights).body
            if evaluated.failed:
                raise NotDone(str(evaluated.failed))
            assert evaluated.ledger is not None
            self._left(evaluated.evaluated)
        else:
            for run in silo.runs.names:
                silo.runs.cancel(run)
                silo.runs.end(run)

    def _left(self, evaluated: MetricSums | None) -> None:
        assert evaluated is not None
        self.measured.add(evaluated.model_dump_json())
        assert self.charged() >= STEPS * len(self.sent), "charged before it left"
        assert self.evaluations() >= len(self.measured), "charged before it left"

    def charged(self) -> int:
        return self._spent(noise_multiplier=1.0)

    def evaluations(self) -> int:
        return self._spent(noise_multiplier=20.0)

    def _spent(self, noise_multiplier: float) -> int:
        spent = find_book(self.home).look().runs["r-1"].spent
        return sum(num_steps for (_, noise), num_steps in spent.items() if noise == noise_multiplier)


def _use(disk: durable.Filesystem, patch: pytest.MonkeyPatch) -> None:
    for module in (durable, bufferfiles):
        patch.setattr(module, "filesystem", disk)


def begin(folder: Path, table: Path) -> Life:
    home = SiloHome(folder, "hospital-a")
    home.create()
    enrol(home)
    remember_datasets(home.datasets, [f"clinic={table}"])
    home.policy.write_text("")
    begin_book(home)  # the deaths at its beginning are in the ledger's own tests
    return Life(home)


@pytest.mark.parametrize("power_loss", [False, True], ids=["kill", "power loss"])
def test_death_at_every_write_never_charges_too_little(
    tmp_path: Path,
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    power_loss: bool,
) -> None:
    calm = begin(tmp_path / "calm", data)
    disk = CrashingFilesystem(10_000, power_loss=power_loss)
    calm.run(disk, monkeypatch)
    assert (len(calm.sent), calm.charged()) == (2, 2 * STEPS)
    assert (len(calm.measured), calm.evaluations()) == (3, 3), "what is asked for twice is sent again, and free"
    assert len(disk.steps) > 40
    for at, step in enumerate(disk.steps):
        tried = begin(tmp_path / str(at), data)
        tried.run(CrashingFilesystem(at, power_loss=power_loss), monkeypatch)
        truth = STEPS * len(tried.sent)
        assert truth <= tried.charged() <= truth + STEPS, (at, step)
        repeats = tried.evaluations() - len(tried.measured)
        assert 0 <= repeats <= 1, (at, step)
        assert len(tried.measured) in (3, 4), (at, step)
        assert not find_book(tried.home).look().runs["r-1"].is_open, (at, step)
        verify_book(tried.home)


def test_figures_that_are_lost_after_they_were_charged_are_charged_again(
    tmp_path: Path,
    data: Path,  # noqa: F811
) -> None:
    life = begin(tmp_path, data)
    silo = RealSilo(life.home)
    for number in (0, 1, 3, 3):
        life.ask(silo, number, number)
    assert (len(life.measured), life.evaluations()) == (2, 2), "sent again as they were"
    for spooled in life.home.spool.glob("r-1/3.*"):
        spooled.unlink()
    life.ask(RealSilo(life.home), 3, 4)
    assert (len(life.measured), life.evaluations()) == (3, 3), "measured anew, with other noise"


def test_metrics_that_nobody_charges_are_noticed(
    tmp_path: Path,
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        test_silo_recovery, "released_by", lambda done: tuple(e for e in released_by(done) if e.sampling_rate < 1)
    )
    with pytest.raises(AssertionError, match="charged before it left"):
        begin(tmp_path, data).run(durable.Filesystem(), monkeypatch)


def test_figures_that_the_policy_keeps_here_cost_nothing(
    tmp_path: Path,
    data: Path,  # noqa: F811
) -> None:
    life = begin(tmp_path, data)
    life.home.policy.write_text('share_metrics = "none"\n')
    silo = RealSilo(life.home)
    life.ask(silo, 0, 0)
    assert silo.train(life.spec, 1, weights=life.weights).body.evaluated is None
    closing = EvaluateRequest(run="r-1", spec_hash=life.spec.hash, round=1)
    assert silo.ask(closing, EvaluateReply, life.weights).body.evaluated is None
    assert (life.charged(), life.evaluations()) == (STEPS, 0)


def test_steps_that_sample_everybody_are_told_from_evaluations_of_the_same_noise(
    tmp_path: Path,
    data: Path,  # noqa: F811
) -> None:
    life = begin(tmp_path, data)
    life.spec = parse_spec(SPEC.replace("batch_size = 8", "batch_size = 64").replace("20.0", "1.0"))
    silo = RealSilo(life.home)
    life.ask(silo, 0, 0)
    assert silo.train(life.spec, 1, weights=life.weights).body.failed is None
    page = find_book(life.home).look().runs["r-1"]
    assert page.planned == {(1.0, 1.0): 2 * STEPS + 3}
    assert page.spent == {(1.0, 1.0): STEPS + 1}
