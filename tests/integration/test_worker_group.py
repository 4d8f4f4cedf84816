"""Worker groups as a silo uses them: real processes, real sockets, real kills."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedplat.errors import LayoutError
from fedplat.params import Group
from fedplat.reasons import Code
from fedplat.spec.model import Precision
from fedplat.wire.buffers import to_bytes
from fedplat.wire.http import Phase
from fedplat_silo.trainer import (
    Cancelled,
    EvaluateOrder,
    TrainingFailed,
    TrainOrder,
    WorkerGroup,
)
from tests.support.workers import (
    ADD_CONSTANT,
    Make,
    add_constant,
    alive,
    data,
    family,
    loss,
    make,
    tabular,
    three_rounds,
    wait_until,
)

__all__ = ["data", "make"]


class Killer:
    """Kills one worker of `group` in the midst of each of the next `left` trainings it sees."""

    def __init__(self, rank: int = 0, left: int = 0) -> None:
        self.group: WorkerGroup | None = None
        self.rank, self.left = rank, left
        self.wanted: Callable[[], bool] = lambda: True
        self.phases: list[Phase] = []

    def __call__(self, phase: Phase, share: float) -> None:
        self.phases.append(phase)
        if phase is Phase.TRAINING and self.left and self.group is not None:
            self.left -= 1
            time.sleep(0.2)
            assert wait_until(self.wanted, 20)
            os.kill(self.group.pids[self.rank], signal.SIGKILL)


def when_training(event: threading.Event) -> Callable[[Phase, float], None]:
    def tell(phase: Phase, share: float) -> None:
        if phase is Phase.TRAINING:
            event.set()

    return tell


def test_two_workers_follow_the_curve_of_one(make: Make) -> None:
    # 292 training records: three batches of 97 (49 and 48), and one of 1 that the second worker sits out
    spec = tabular(
        "epochs = 4\nbatch_size = 97\nlearning_rate = 0.1\nmomentum = 0.9\ngradient_clip = 0.5\n"
        "class_weights = [1.0, 3.0]"
    )
    one, two = make(spec, name="one"), make(spec, num_workers=2, name="two")
    ready = two.start()
    assert (ready.num_train, ready.num_workers, ready.device) == (292, 2, "cpu")
    for single, pair in zip(three_rounds(one, mu=0.1), three_rounds(two, mu=0.1), strict=True):
        np.testing.assert_allclose(pair.update, single.update, atol=1e-6)
        assert loss(pair.trained) == pytest.approx(loss(single.trained), rel=1e-5)
        assert loss(pair.evaluated) == pytest.approx(loss(single.evaluated), rel=1e-5)
        assert pair.trained.num_examples == single.trained.num_examples == 4 * 292
        assert pair.evaluated is not None
        assert pair.evaluated.num_examples == 108
    assert listening(family(two.pids[0])) <= {"127.0.0.1", "::1"}


def listening(pids: set[int]) -> set[str]:
    """The local addresses on which these processes listen."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(fd)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    addresses = set()
    for table, loopback, name in (
        ("tcp", "0100007F", "127.0.0.1"),
        ("tcp6", "00000000000000000000000001000000", "::1"),
    ):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and fields[3] == "0A":
                address = fields[1].partition(":")[0]
                addresses.add(name if address == loopback else address)
    return addresses


def test_same_round_same_bits_and_training_helps(make: Make) -> None:
    group = make(tabular("epochs = 3\nbatch_size = 16\nlearning_rate = 0.2"))
    results = three_rounds(group)
    again = group.train(TrainOrder(1), group.initial_weights())
    assert again.update.tobytes() == results[0].update.tobytes()
    assert loss(results[2].evaluated) < loss(results[0].evaluated)
    assert results[0].timings.samples_per_s > 0
    assert 0 < results[0].timings.busy_share <= 1
    assert results[0].timings.restarts == 0
    final = group.initial_weights() + sum(r.update for r in results)
    assert loss(group.evaluate(EvaluateOrder(3), final).evaluated) < loss(results[0].evaluated)


@pytest.mark.parametrize(("num_workers", "steps"), [pytest.param(1, 2000, marks=pytest.mark.slow), (2, 500)])
def test_a_killed_worker_changes_no_bit(make: Make, num_workers: int, steps: int) -> None:
    spec = tabular(f"steps = {steps}\nbatch_size = 8", model='local = ["2.*"]')
    killer = Killer(rank=num_workers - 1)
    calm, hit = make(spec, num_workers, name="calm"), make(spec, num_workers, killer, name="hit")
    weights = calm.initial_weights()
    expected = [calm.train(TrainOrder(n), weights).update.tobytes() for n in (1, 2)]
    calm.close()
    first = hit.train(TrainOrder(1), weights)
    updates = [first.update.tobytes()]
    killer.group, killer.left = hit, 1
    second = hit.train(TrainOrder(2, evaluate=True), weights)
    assert (first.timings.restarts, second.timings.restarts) == (0, 1)
    assert expected == [*updates, second.update.tobytes()]
    assert Phase.RESTARTING in killer.phases


@pytest.mark.parametrize(("num_workers", "steps"), [pytest.param(1, 2000, marks=pytest.mark.slow), (2, 500)])
def test_a_killed_worker_goes_on_from_its_checkpoint(make: Make, tmp_path: Path, num_workers: int, steps: int) -> None:
    """Two kills: had the round begun anew after them, every report of a share would come again."""
    spec = tabular(
        f'steps = {steps}\nbatch_size = 8\noptimizer = "adam"\nlocal_checkpoint_steps = 50', model='local = ["2.*"]'
    )
    killer = Killer(rank=num_workers - 1)
    calm, hit = make(spec, num_workers, name="calm"), make(spec, num_workers, killer, name="hit")
    weights = calm.initial_weights()
    expected = calm.train(TrainOrder(1, evaluate=True), weights)
    calm.close()
    hit.start()
    killer.group, killer.left, killer.wanted = hit, 2, lambda: (tmp_path / "hit/checkpoint/manifest.json").exists()
    found = hit.train(TrainOrder(1, evaluate=True), weights)
    assert found.timings.restarts == 2
    assert found.update.tobytes() == expected.update.tobytes()
    assert (found.trained, found.evaluated) == (expected.trained, expected.evaluated)
    assert (tmp_path / "silo.log").read_text().count("rank 0: round 1 goes on after step") == 2


def test_an_update_lies_in_shared_memory_and_half_weights_are_widened(make: Make) -> None:
    group = make(add_constant(seconds=0))
    half = np.frombuffer(to_bytes(np.full(1000, 2.5, dtype=np.float32), Precision.BF16), dtype="<u2")
    first = group.train(TrainOrder(1, evaluate=True), half).update
    np.testing.assert_array_equal(first, np.ones(1000, dtype=np.float32))
    assert not first.flags.writeable
    assert loss(group.evaluate(EvaluateOrder(1), half).evaluated) == 2.5**2
    assert np.shares_memory(first, group.train(TrainOrder(2), half).update)
    with pytest.raises(LayoutError, match="of 999 elements does not fit a layout of 1000"):
        group.train(TrainOrder(3), half[:-1])


@pytest.mark.slow
def test_the_fourth_kill_ends_the_round(make: Make) -> None:
    killer = Killer(left=4)
    group = killer.group = make(add_constant(seconds=60), on_progress=killer)
    weights = group.initial_weights()
    with pytest.raises(TrainingFailed) as failure:
        group.train(TrainOrder(1), weights)
    assert failure.value.reason.code is Code.WORKERS_FAILED
    assert failure.value.reason.words == {"phase": "training", "status": -9, "restarts": 3}


def test_cancel_ends_a_command_and_the_next_one_works(make: Make) -> None:
    started = threading.Event()
    group = make(add_constant(seconds=1.5), on_progress=when_training(started))
    weights = group.initial_weights()
    group.cancel()  # nothing runs: no effect
    outcome: list[object] = []

    def work() -> None:
        try:
            outcome.append(group.train(TrainOrder(1), weights))
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(30)
    processes = family(group.pids[0])
    begin = time.monotonic()
    group.cancel()
    thread.join(10)
    assert time.monotonic() - begin < 2
    assert isinstance(outcome[0], Cancelled)
    assert not any(map(alive, processes))
    np.testing.assert_array_equal(group.train(TrainOrder(1), weights).update, np.ones(1000, dtype=np.float32))


def test_close_leaves_nothing_behind(make: Make) -> None:
    started = threading.Event()
    group = make(add_constant(seconds=60), 2, when_training(started))
    thread = threading.Thread(target=swallow, args=(group,))
    thread.start()
    assert started.wait(60)
    processes = family(group.pids[0])
    assert len(processes) >= 4
    folder = group._crew._folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    begin = time.monotonic()
    group.close()
    assert time.monotonic() - begin < 2.5
    thread.join(5)
    assert not any(map(alive, processes))
    assert not folder.exists()
    with pytest.raises(Cancelled):
        group.start()
    group.close()


def swallow(group: WorkerGroup) -> None:
    with pytest.raises(Cancelled):
        group.train(TrainOrder(1), np.zeros(1000, dtype=np.float32))


PARENT = """
import json, sys, numpy as np
from pathlib import Path
from fedplat.spec import parse_spec
from fedplat_silo.trainer import TrainingPlan, TrainOrder, WorkerGroup
spec, folder, num = parse_spec(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
plan = TrainingPlan(spec=spec, silo="a", data=folder, run_dir=folder / "run", num_workers=num)
def tell(phase, share):
    if phase.value == "training":
        print(json.dumps(group.pids), flush=True)
group = WorkerGroup(plan, folder / "log", tell)
group.train(TrainOrder(1), np.zeros(1000, dtype=np.float32))
"""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_outlive_a_killed_parent(short_path: Path, num_workers: int) -> None:
    arguments = [sys.executable, "-c", PARENT, ADD_CONSTANT.format(seconds=60), str(short_path), str(num_workers)]
    environment = {**os.environ, "TMPDIR": str(short_path)}  # nobody is left to remove its sockets
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        processes = family(json.loads(parent.stdout.readline())[0])
        assert len(processes) >= num_workers
        parent.kill()
    assert wait_until(lambda: not any(map(alive, processes)), 3.0)


def test_local_parameters_survive_and_never_leave(make: Make) -> None:
    spec = tabular("epochs = 2\nlearning_rate = 0.1", model='local = ["2.*"]\nfrozen = ["0.bias"]'.replace("\n", ", "))
    group = make(spec, name="local")
    ready = group.start()
    assert ready.layout.names(Group.LOCAL) == ("2.weight", "2.bias")
    assert ready.layout.names(Group.SHARED) == ("0.weight",)
    assert len(ready.frozen_hash) == 64
    weights = group.initial_weights()
    updates = [group.train(TrainOrder(n), weights).update.tobytes() for n in (1, 2, 3)]
    assert updates[0] != updates[1]
    group.close()
    back = make(spec, name="local")
    # round 3 was done, and is repeated: it starts from the local parameters that it started from
    assert back.start().frozen_hash == ready.frozen_hash
    assert back.train(TrainOrder(3), weights).update.tobytes() == updates[2]
    fourth = back.train(TrainOrder(4), weights).update.tobytes()
    assert fourth != updates[2]
    assert back.train(TrainOrder(4), weights).update.tobytes() == fourth
    for file in (back._plan.run_dir).iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_parent_side_needs_no_torch() -> None:
    code = (
        "import sys, fedplat_silo.trainer, fedplat_silo.tasks.registry as r; r.installed(); r.identity('tabular');"
        "assert not {'torch', 'pyarrow', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
