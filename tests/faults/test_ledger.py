"""The privacy ledger when processes die at any instant, race for the last of a budget, or find their disk full."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedplat import durable
from fedplat_silo.ledger import BudgetExceeded, begin_book, receipts, rules, verify_book
from fedplat_silo.ledger.storage import Storage
from tests.support.crashes import Crash, CrashingFilesystem
from tests.support.ledger_silo import NUM_ROUNDS, STEPS
from tests.unit.ledger.scene import Scene, quick_epsilon, reserve, steps

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rules, receipts):
        monkeypatch.setattr(module, "epsilon", quick_epsilon)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder whose fsync takes no time: to a process that is killed it makes no difference."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fp-ledger-", dir=place) as folder:
        yield Path(folder)


def test_death_before_every_write_never_charges_too_little(memory: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.support.ledger_silo", str(memory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    truth = NUM_ROUNDS * STEPS
    for said in lives[:-1]:
        assert said["died"] == signal.SIGKILL, said
        assert said["released"] == NUM_ROUNDS, said
        assert truth <= said["charged"] <= truth + STEPS, "at most the one round is repeated that the death fell into"
        assert said["committed"] == said["charged"], "closed: nothing is held back"
    assert lives[-1]["died"] == 0
    assert lives[-1]["charged"] == truth
    assert len(lives) > 80, "every write of SQLite and of the note was a death"
    assert {said["released_before"] for said in lives} == set(range(NUM_ROUNDS + 1))
    assert any(said["charged"] > truth for said in lives)


RACE = """
import sys
import time
from pathlib import Path
from fedplat.home import SiloHome
from fedplat_silo.ledger import BudgetExceeded, begin_book, receipts, rules
from tests.unit.ledger.scene import quick_epsilon, reserve, steps

def slow_epsilon(events, *, delta):
    time.sleep(0.02)  # whoever is in here must be alone
    return quick_epsilon(events, delta=delta)

rules.epsilon = receipts.epsilon = slow_epsilon
home = SiloHome(Path(sys.argv[1]), "hospital-a")
home.create()
book = begin_book(home)
print(len(book.look().hashes), flush=True)
for line in sys.stdin:
    run, num = line.split()
    try:
        reserve(book, run, steps(int(num)))
        print("reserved", flush=True)
    except BudgetExceeded:
        print("refused", flush=True)
"""


def racers(folder: Path, num: int) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-c", RACE, str(folder)]
    return [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(num)
    ]


def test_two_processes_race_for_the_last_of_a_budget(scene: Scene) -> None:
    scene.register()
    scene.budget(10)
    processes = racers(scene.folder, 2)
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline()
        for lap in range(10):
            scene.budget(10 * (lap + 1))
            answers = ask_all(processes, [f"r-{lap}-{number} 10" for number in range(2)])
            assert sorted(answers) == ["refused", "reserved"]
    finally:
        for process in processes:
            process.communicate()
    verify_book(scene.home)


def ask_all(processes: list[subprocess.Popen[str]], questions: list[str]) -> list[str]:
    for process, question in zip(processes, questions, strict=True):
        assert process.stdin is not None
        process.stdin.write(question + "\n")
        process.stdin.flush()
    return [process.stdout.readline().strip() for process in processes if process.stdout is not None]


def test_processes_that_begin_the_book_at_once_begin_one(tmp_path: Path) -> None:
    processes = racers(tmp_path, 3)
    answers = [process.communicate("")[0] for process in processes]
    assert answers == ["1\n"] * 3
    assert [process.returncode for process in processes] == [0] * 3


def test_threads_race_for_the_last_of_a_budget(scene: Scene) -> None:
    scene.register()
    scene.budget(10)

    def one(number: int) -> bool:
        try:
            reserve(scene.book, f"r-{number}", steps(10))
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(one, range(4))) == 1


def test_a_power_cut_at_every_step_of_our_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = CrashingFilesystem(10_000, power_loss=True)
    monkeypatch.setattr(durable, "filesystem", calm)
    Scene(tmp_path / "calm").register()
    for at, step in enumerate(calm.steps):
        monkeypatch.setattr(durable, "filesystem", CrashingFilesystem(at, power_loss=True))
        with pytest.raises(Crash):
            Scene(tmp_path / str(at)).register()
        monkeypatch.setattr(durable, "filesystem", durable.Filesystem())
        after = Scene(tmp_path / str(at))
        after.register()
        assert verify_book(after.home).num_entries == 2, step


def test_a_full_disk_is_said_and_nothing_is_charged(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite counts pages: a limit of them is the full disk that a test can have."""
    scene.register()
    scene.budget(1000)
    scene.reserve("r-1", steps(1000))
    connect = Storage._connect

    def full(storage: Storage) -> object:
        connection = connect(storage)
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(Storage, "_connect", full)
    head = scene.book.head()

    def spend_on() -> None:
        nonlocal head
        for number in range(100):
            scene.book.spend("r-1", number, "a" * 128, [steps(1)])
            head = scene.book.head()

    with pytest.raises(OSError, match="No space left"):
        spend_on()
    monkeypatch.undo()
    book = begin_book(scene.home)
    assert book.head() == head
    verify_book(scene.home)


def test_a_note_that_cannot_be_written_is_written_later(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.register()
    scene.budget(10)
    scene.reserve("r-1", steps(10))

    class Full(durable.Filesystem):
        def open(self, path: Path, mode: int) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "filesystem", Full())
    with pytest.raises(OSError, match="No space"):
        scene.book.spend("r-1", 1, "a", [steps(1)])
    monkeypatch.setattr(durable, "filesystem", durable.Filesystem())
    receipt = scene.book.spend("r-1", 1, "a", [steps(1)])
    assert receipt.spent == (steps(1),)
    assert (scene.home.path / "ledger.head").read_text().split() == [str(receipt.entry.seq), receipt.entry.hash]
