"""A round that was interrupted anywhere and goes on from its local checkpoint ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from fedplat import durable
from fedplat.metrics import MetricSums
from fedplat.spec.model import RunSpec
from fedplat_silo.data.examples import TensorExamples
from fedplat_silo.tasks.tabular import Tabular
from fedplat_silo.trainer.checkpoint import Checkpoints, Key
from fedplat_silo.trainer.ddp import Place
from fedplat_silo.trainer.loop import LocalRound, train_batches
from tests.support.crashes import Crash, CrashingFilesystem

MakeSpec = Callable[..., RunSpec]
NUM_STEPS = 7
KEY = Key(
    run="r-1",
    round=2,
    spec_hash="a" * 64,
    weights="b" * 64,
    num_examples=20,
    num_ranks=1,
    device="cpu",
    software=("2",),
)


class Interrupted(Exception):
    pass


class Noisy(Tabular):
    """Random numbers in the forward pass, a parameter that does not learn, and buffers that change."""

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        model[0].bias.requires_grad_(False)
        return model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Round:
    """One attempt at a round over the checkpoints in `folder`; it ends before step `stop_before`."""

    def __init__(self, spec: RunSpec, folder: Path, key: Key = KEY, stop_before: int = 0) -> None:
        self.steps_seen: list[int] = []
        self._stop_before = stop_before
        self._task = Noisy(spec)
        self.model = self._task.build_model()
        generator = torch.Generator().manual_seed(1)
        inputs, targets = (
            torch.randn(20, 3, generator=generator),
            torch.randint(0, 2, (20,), generator=generator),
        )
        received = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        checkpoints = Checkpoints(folder, key, Place())
        self.work = LocalRound(
            self.model,
            TensorExamples(inputs, targets),
            spec.training,
            5,
            Place(),
            received,
            0.1,
            self._report,
            checkpoints,
        )
        torch.manual_seed(9)

    def _report(self, share: float) -> None:
        step = round(share * NUM_STEPS)
        self.steps_seen.append(step)
        if step == self._stop_before - 1:
            raise Interrupted

    def run(self) -> tuple[MetricSums, dict[str, bytes]]:
        sums = train_batches(self._task, self.work)
        return sums, {name: t.numpy().tobytes() for name, t in self.model.state_dict().items()}


@pytest.fixture
def spec(make_spec: MakeSpec) -> RunSpec:
    return checkpointed(make_spec, "adam", 2)


def checkpointed(make_spec: MakeSpec, optimizer: str, every: int) -> RunSpec:
    more = "\nmomentum = 0.9\ngradient_clip = 0.5" if optimizer == "sgd" else ""
    return make_spec(
        training=f'steps = {NUM_STEPS}\nbatch_size = 8\nlearning_rate = 0.05\noptimizer = "{optimizer}"{more}\n'
        f"local_checkpoint_steps = {every}"
    )


def interrupt(spec: RunSpec, folder: Path, before: int, key: Key = KEY) -> None:
    with pytest.raises(Interrupted):
        Round(spec, folder, key, stop_before=before).run()


@pytest.mark.parametrize(("optimizer", "every"), [("sgd", 1), ("adam", 2), ("adamw", 3)])
def test_it_goes_on_after_the_last_checkpoint_and_no_bit_differs(
    make_spec: MakeSpec, tmp_path: Path, optimizer: str, every: int
) -> None:
    spec = checkpointed(make_spec, optimizer, every)
    expected = Round(spec, tmp_path / "calm").run()
    for before in range(2, NUM_STEPS + 2):
        folder = tmp_path / str(before)
        interrupt(spec, folder, before)
        again = Round(spec, folder)
        assert again.run() == expected
        done = (before - 1) // every * every
        assert again.steps_seen == list(range(done + 1, NUM_STEPS + 1))
        assert again.work.num_recovered == sum([8, 8, 4, 8, 8, 4, 8][:done])


def test_interrupted_again_and_again(spec: RunSpec, tmp_path: Path) -> None:
    expected = Round(spec, tmp_path / "calm").run()
    for before in (2, 4, 4, 6, 8):
        interrupt(spec, tmp_path / "hit", before)
    assert Round(spec, tmp_path / "hit").run() == expected


def test_without_the_key_nothing_is_written(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(training=f"steps = {NUM_STEPS}\nbatch_size = 8")
    attempt = Round(spec, tmp_path / "c")
    attempt.work.checkpoints = None
    attempt.run()
    assert not (tmp_path / "c").exists()


def test_files_are_private_and_only_the_newest_stays(spec: RunSpec, tmp_path: Path) -> None:
    interrupt(spec, tmp_path / "c", 6)
    files = sorted((tmp_path / "c").iterdir())
    assert [f.name for f in files] == ["manifest.json", "step-4.rank-0.safetensors"]
    assert {f.stat().st_mode & 0o777 for f in files} == {0o600}
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["manifest.json", "step-4.rank-0.safetensors"])
def test_damage_is_found_said_and_costs_time_only(
    spec: RunSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    expected = Round(spec, tmp_path / "calm").run()
    interrupt(spec, tmp_path / "c", 6)
    kept = {f.name: f.read_bytes() for f in (tmp_path / "c").iterdir()}
    whole = kept[name]
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        for damage in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            for other, content in kept.items():
                (tmp_path / "c" / other).write_bytes(content)
            (tmp_path / "c" / name).write_bytes(damage)
            caplog.clear()
            assert Checkpoints(tmp_path / "c", KEY, Place()).newest() == 0
            assert [r.levelname for r in caplog.records] == ["WARNING"]
            assert not list((tmp_path / "c").iterdir())
    interrupt(spec, tmp_path / "c", 6)
    (tmp_path / "c" / name).write_bytes(whole[:-1])
    assert Round(spec, tmp_path / "c").run() == expected


@pytest.mark.parametrize(
    "change",
    [
        {"run": "r-2"},
        {"round": 3},
        {"spec_hash": "c" * 64},
        {"weights": "c" * 64},
        {"num_examples": 21},
        {"num_ranks": 2},
        {"device": "cuda"},
        {"software": ("3",)},
    ],
)
def test_a_foreign_one_is_dropped(
    spec: RunSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object]
) -> None:
    interrupt(spec, tmp_path / "c", 6, KEY.model_copy(update=change))
    again = Round(spec, tmp_path / "c")
    assert again.run() == Round(spec, tmp_path / "calm").run()
    assert again.steps_seen[0] == 1
    assert "something else" in caplog.text


@pytest.mark.parametrize("power_loss", [False, True], ids=["kill", "power loss"])
def test_death_at_any_write_leaves_the_older_checkpoint_or_the_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power_loss: bool
) -> None:
    found = []
    for at in range(100):
        checkpoints = Checkpoints(tmp_path / str(at), KEY, Place())
        checkpoints.newest()
        checkpoints.save(1, {"x": torch.tensor(1)})
        disk = CrashingFilesystem(at, power_loss=power_loss)
        with monkeypatch.context() as patch, suppress(Crash):
            patch.setattr(durable, "filesystem", disk)
            checkpoints.save(2, {"x": torch.tensor(2)})
        again = Checkpoints(tmp_path / str(at), KEY, Place())
        found.append(again.newest())
        assert int(again.load()["x"]) == found[-1]
        assert len(list((tmp_path / str(at)).iterdir())) == 2
        if len(disk.steps) <= at:
            break
    assert found == sorted(found)
    assert set(found) == {1, 2}


def test_a_full_disk_costs_the_checkpoint_not_the_round(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Round(spec, tmp_path / "calm").run()
    interrupt(spec, tmp_path / "c", 4)

    class Full(durable.Filesystem):
        def write(self, fd: int, data: memoryview) -> int:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "filesystem", Full())
        with pytest.raises(Interrupted):
            Round(spec, tmp_path / "c", stop_before=7).run()
    assert caplog.text.count("was not written") == 2
    again = Round(spec, tmp_path / "c")
    assert again.run() == expected
    assert again.steps_seen[0] == 3
