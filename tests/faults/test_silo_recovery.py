"""A silo whose process, or whose machine, dies at any instant of a run ends the run as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedplat import durable
from fedplat.home import SiloHome
from fedplat.params import Vector
from fedplat.spec import RunSpec, parse_spec
from fedplat.wire.http import Phase
from fedplat.wire.messages import EvaluateReply, EvaluateRequest, JoinReply, Timings
from fedplat_silo.client_app import make_client_app
from fedplat_silo.datasets import remember_datasets
from fedplat_silo.runs import Runs
from fedplat_silo.trainer.ddp import Place
from fedplat_silo.trainer.group import EvaluateOrder, EvaluateResult, Ready, TrainOrder, TrainResult, released_by
from fedplat_silo.trainer.messages import Command
from fedplat_silo.trainer.plan import TrainingPlan
from fedplat_silo.trainer.session import Session
from fedplat_silo.workplace import Site
from tests.support.crashes import Crash, CrashingFilesystem
from tests.support.federation import Federation, federation, wait_until
from tests.support.membership import enrol
from tests.unit.silo_process.fakes import no_road
from tests.unit.silo_process.test_client_app import Silo

SPEC = """
name = "clinic"
seed = 3
data = {{ name = "clinic", test_share = 0.25 }}
rounds = {{ count = {rounds} }}
model = {{ local = ["2.*"] }}
[task]
name = "tabular"
[task.options]
model = "mlp"
hidden = [4]
target = {{ column = "ill", categories = ["no", "yes"] }}
features = [ {{ column = "age", kind = "numeric", center = 50, scale = 10 }} ]
[training]
steps = {steps}
batch_size = 8
optimizer = "adam"
local_checkpoint_steps = {every}
"""


class NotDone(Exception):
    """The silo has answered that it could not; the server will ask again."""


class FullOnce(CrashingFilesystem):
    """The disk refuses step `at`, and no other."""

    def __init__(self, at: int) -> None:
        super().__init__(at, power_loss=False)

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if len(self.steps) == self.at + 1:
            raise OSError(28, "No space left on device")


class InProcess:
    """A run's only worker, without a process of its own."""

    def __init__(self, plan: TrainingPlan, _log: Path, _report: Callable[[Phase, float], None]) -> None:
        durable.make_private_dir(plan.run_dir)
        self._plan = plan

    def start(self) -> Ready:
        self._session = Session(self._plan, Place(), lambda _phase, _share: None)
        found = self._session.prepared()
        return Ready(
            self._session.layout,
            "",
            found.num_train,
            found.num_test,
            (),
            found.torch_version,
            "cpu",
            1,
            1,
            num_units=found.num_units,
            empty_sums=found.empty_sums,
        )

    def initial_weights(self) -> Vector:
        out = np.zeros(self._session.layout.size, dtype=np.float32)
        self._session.write_initial(out)
        return out

    def train(self, order: TrainOrder, weights: Vector) -> TrainResult:
        update = np.zeros_like(weights)
        command = Command(kind="train", **asdict(order))
        done = self._session.train(command, weights.copy(), update)
        assert done.trained is not None
        return TrainResult(update, done.trained, done.evaluated, Timings(), released_by(done))

    def evaluate(self, order: EvaluateOrder, weights: Vector) -> EvaluateResult:
        done = self._session.evaluate(Command(kind="evaluate", round=order.round), weights.copy())
        return EvaluateResult(done.evaluated, Timings(), released_by(done))

    def cancel(self) -> None:
        """Nothing to end."""

    def close(self) -> None:
        """Nothing to end."""


class RealSilo(Silo):
    """Trains with PyTorch."""

    def __init__(self, home: SiloHome) -> None:
        self.home = home
        self.runs = Runs(Site(home, InProcess, lambda _progress: None, no_road))
        self.app = make_client_app(self.runs, home.name)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "clinic.csv"
    random = np.random.default_rng(0)
    ages = random.normal(50, 10, size=60)
    path.write_text("age,ill\n" + "".join(f"{a:.3f},{'yes' if a > 50 else 'no'}\n" for a in ages))
    return path


@dataclass
class Script:
    """What a server asks in a run of two rounds, and what it heard."""

    spec: RunSpec
    home: SiloHome

    def steps(self) -> list[Callable[[Silo], Any]]:
        weights = np.linspace(-0.5, 0.5, 8, dtype=np.float32)
        asked = EvaluateRequest(run="r-1", spec_hash=self.spec.hash, round=2)
        return [
            lambda silo: joined(silo.join(self.spec)),
            lambda silo: self._heard(silo.train(self.spec, 1, weights=weights)),
            lambda silo: self._heard(silo.train(self.spec, 1, step=2, weights=weights)),
            lambda silo: self._heard(silo.train(self.spec, 2, step=3, weights=weights / 2)),
            lambda silo: silo.ask(asked, EvaluateReply, weights).body.evaluated,
            self._end,
        ]

    def run(self, disk: CrashingFilesystem, patch: pytest.MonkeyPatch) -> list[Any]:
        """All answers. When the silo dies a new process is started, and asked again what was not answered."""
        patch.setattr(durable, "filesystem", disk)
        silo, answers = None, []
        for step in self.steps():
            try:
                silo = silo or RealSilo(self.home)
                answers.append(step(silo))
            except (Crash, OSError):
                patch.undo()
                silo = RealSilo(self.home)
                answers.append(step(silo))
            except NotDone:
                if disk.has_died:  # in another thread; what this one said is not heard
                    patch.undo()
                    silo = RealSilo(self.home)
                assert silo is not None
                answers.append(step(silo))
        patch.undo()
        return answers

    def _heard(self, parcel: Any) -> tuple[bytes, Any, Any]:
        if parcel.body.failed:
            raise NotDone
        assert not (self.home.run("r-1") / "checkpoint").exists(), "the round is finished"
        return parcel.buffer, parcel.body.trained, parcel.body.evaluated

    def _end(self, silo: Silo) -> None:
        """As a wake-up does it: the silo names its runs, and hears that this one is over."""
        for run in silo.runs.names:
            (self.home.run(run) / "scratch").touch()  # what a round leaves that was not finished
            silo.runs.cancel(run)
            silo.runs.end(run)


def joined(reply: JoinReply) -> Any:
    if reply.failed:
        raise NotDone
    return reply.layout


def make_script(folder: Path, data: Path) -> Script:
    home = SiloHome(folder, "hospital-a")
    home.create()
    enrol(home)
    remember_datasets(home.datasets, [f"clinic={data}"])
    home.policy.write_text("")
    return Script(parse_spec(SPEC.format(rounds=2, steps=3, every=2)), home)


def content(home: SiloHome) -> dict[str, bytes]:
    files = (path for folder in (home.runs, home.spool) for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(home.path)): path.read_bytes() for path in files}


@pytest.mark.parametrize("power_loss", [pytest.param(False, marks=pytest.mark.slow), True], ids=["kill", "power loss"])
def test_death_at_every_write_of_a_run(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, power_loss: bool
) -> None:
    calm = make_script(tmp_path / "calm", data)
    disk = CrashingFilesystem(10_000, power_loss=power_loss)
    expected = calm.run(disk, monkeypatch)
    assert len(content(calm.home)) == 4  # which run it was, its spec, and the local parameters after either round
    for at, step in enumerate(disk.steps):
        script = make_script(tmp_path / str(at), data)
        assert script.run(CrashingFilesystem(at, power_loss=power_loss), monkeypatch) == expected, step
        assert content(script.home) == content(calm.home), step
        assert not list(script.home.spool.iterdir()), step


@pytest.mark.slow
def test_a_full_disk_at_every_write_of_a_run(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = make_script(tmp_path / "calm", data)
    disk = FullOnce(10_000)
    expected = calm.run(disk, monkeypatch)
    for at, step in enumerate(disk.steps):
        script = make_script(tmp_path / str(at), data)
        assert script.run(FullOnce(at), monkeypatch) == expected, step
        assert content(script.home) == content(calm.home), step


def test_a_start_removes_what_nobody_owns(tmp_path: Path, data: Path) -> None:
    script = make_script(tmp_path, data)
    silo = RealSilo(script.home)
    for step in script.steps()[:3]:
        step(silo)
    before = content(script.home)
    (script.home.run("r-1") / ".spec.json.abc.part").touch()
    (script.home.spool / "r-1" / ".1.update.abc.part").touch()
    for stranger in (script.home.run("r-2"), script.home.spool / "r-3"):
        stranger.mkdir()
        (stranger / "file").touch()
    RealSilo(script.home)
    assert content(script.home) == before
    assert not script.home.run("r-2").exists()
    assert not (script.home.spool / "r-3").exists()


def test_a_killed_silo_joins_with_the_same_command_and_changes_no_bit(data: Path) -> None:
    spec = SPEC.format(rounds=2, steps=1000, every=50)
    with federation() as fed:
        fed.join("a", data={"clinic": data})
        expected = weights_after(fed, fed.submit(spec))
        run = fed.submit(spec)
        for number in (1, 2):
            manifest = fed.silo_home("a") / "runs" / run / "checkpoint" / "manifest.json"
            wait_until(lambda: is_training(fed, run, number, manifest), 60, fed.all_logs)  # noqa: B023
            fed.kill("a")
            fed.join("a", data={"clinic": data})
        assert weights_after(fed, run) == expected
        log = (fed.silo_home("a") / "silo.log").read_text()
        assert log.count("goes on after step") == 2


def is_training(fed: Federation, run: str, number: int, manifest: Path) -> bool:
    with suppress(OSError):
        return f'"round":{number},' in manifest.read_text()
    return False


def weights_after(fed: Federation, run: str) -> bytes:
    fed.wait_for(run)
    fed.command("run", "export", run, "--to", str(fed.folder / run))
    return next((fed.folder / run).glob("*.safetensors")).read_bytes()
