"""A silo whose process, or whose machine, dies at any write of a private run: what left it is in its ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedplat import bufferfiles, durable
from fedplat.home import SiloHome
from fedplat.params import Vector
from fedplat.spec import RunSpec, parse_spec
from fedplat.wire.messages import layout_from_wire
from fedplat_silo import accounts
from fedplat_silo.datasets import remember_datasets
from fedplat_silo.ledger import begin_book, find_book, receipts, rules, verify_book
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
metrics = "none"
noise_multiplier = 1.0
delta = 1e-4
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rules, receipts, accounts):
        monkeypatch.setattr(module, "epsilon", quick_epsilon)


@dataclass
class Life:
    """A run of two rounds, the first asked for twice. `sent`: the updates that left, each once."""

    home: SiloHome
    spec: RunSpec = field(default_factory=lambda: parse_spec(SPEC))
    sent: set[bytes] = field(default_factory=set)
    weights: Vector = field(default_factory=lambda: np.empty(0, dtype=np.float32))

    def run(self, disk: CrashingFilesystem, patch: pytest.MonkeyPatch) -> None:
        _use(disk, patch)
        silo = None
        for number, step in [(0, 0), (1, 1), (1, 2), (2, 3), (3, 0)]:
            try:
                silo = silo or RealSilo(self.home)
                self._ask(silo, number, step)
            except (Crash, NotDone):
                _use(durable.Filesystem(), patch)
                silo = RealSilo(self.home)
                self._ask(silo, number, step)
        _use(durable.Filesystem(), patch)

    def _ask(self, silo: RealSilo, number: int, step: int) -> None:
        if number == 0:
            layout = layout_from_wire(joined(silo.join(self.spec)))
            self.weights = np.zeros(layout.size, dtype=np.float32)
        elif number < 3:
            reply = silo.train(self.spec, number, step=step, weights=self.weights)
            if reply.body.failed:
                raise NotDone(str(reply.body.failed))
            self.sent.add(reply.buffer)
            assert self.charged() >= STEPS * len(self.sent), "charged before it left"
        else:
            for run in silo.runs.names:
                silo.runs.cancel(run)
                silo.runs.end(run)

    def charged(self) -> int:
        page = find_book(self.home).look().runs["r-1"]
        return sum(event.num_steps for spent in page.spends.values() for event in spent.events)


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
    assert len(disk.steps) > 40
    for at, step in enumerate(disk.steps):
        tried = begin(tmp_path / str(at), data)
        tried.run(CrashingFilesystem(at, power_loss=power_loss), monkeypatch)
        truth = STEPS * len(tried.sent)
        assert truth <= tried.charged() <= truth + STEPS, (at, step)
        assert not find_book(tried.home).look().runs["r-1"].is_open, (at, step)
        verify_book(tried.home)
