"""A silo's home, broken in one place at a time."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import pytest

from fedplat import durable
from fedplat.doctor import Level
from fedplat.home import SiloHome
from fedplat.identity import new_key, save_key
from fedplat_silo.datasets import remember_datasets
from fedplat_silo.doctor import devices
from fedplat_silo.ledger import begin_book, call_the_roll
from fedplat_silo.status import Status, set_paused, write_status
from tests.unit.doctor.scene import enrolled, expect, line, patients, silo, write_patients

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def home(tmp_path: Path) -> SiloHome:
    made = enrolled(tmp_path)
    remember_datasets(made.datasets, [f"heart={write_patients(tmp_path / 'heart.csv', patients())}"])
    return made


def test_all_is_well(home: SiloHome) -> None:
    for check in ("home", "files", "disk space", "disk speed", "enrolment", "process", "policy", "ledger", "datasets"):
        expect(line(silo(home), check), Level.OK)
    assert not (home.path / "doctor-probe").exists()


def test_no_such_silo(home: SiloHome) -> None:
    found = silo(SiloHome(home.root, "hospital-z"))
    expect(line(found, "home"), Level.FAILED, "there is no silo hospital-z", "There are: hospital-a.")
    expect(line(found, "policy"), Level.SKIPPED, "'home' has failed")
    assert not (home.root / "silos" / "hospital-z").exists(), "to look makes nothing"


def test_a_home_that_is_open(home: SiloHome) -> None:
    home.path.chmod(0o755)
    expect(line(silo(home), "home"), Level.FAILED, "open to other users (mode 0755)", "chmod 700")


@pytest.mark.parametrize("name", ["identity/key.pem", "spool", "exclude.csv", "silo.log", "runs/r-1/masking.json"])
def test_a_secret_that_is_open(home: SiloHome, name: str) -> None:
    path = home.path / name
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.touch()
    path.chmod(0o755 if path.is_dir() else 0o644)
    expect(line(silo(home), "files"), Level.FAILED, f"open to other users: {name}", "chmod go= ")


def test_files_of_another_user(home: SiloHome, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 4711)
        expect(line(silo(home), "home"), Level.FAILED, "this is user 4711", "Run this as its owner")
    if os.getuid() == 0:
        os.chown(home.key, 4711, -1)
        expect(line(silo(home), "files"), Level.FAILED, "identity/key.pem belong to another user", "chown -R")


@pytest.mark.parametrize(("free", "level"), [(50 << 20, Level.FAILED), (1 << 30, Level.WARNING)])
def test_a_disk_that_fills(home: SiloHome, monkeypatch: pytest.MonkeyPatch, free: int, level: Level) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, free))
    expect(line(silo(home), "disk space"), level, "free at", "Make room")


def test_a_disk_that_is_slow(home: SiloHome, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(durable.Filesystem):
        def fsync(self, fd: int) -> None:
            time.sleep(0.15)

    monkeypatch.setattr(durable, "filesystem", Slow())
    expect(line(silo(home), "disk speed"), Level.WARNING, "the disk is slow", "local disk")
    assert not (home.path / "doctor-probe").exists()


def test_a_disk_that_cannot_be_written(home: SiloHome, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(durable.Filesystem):
        def open(self, path: Path, mode: int) -> int:
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(durable, "filesystem", Full())
    expect(line(silo(home), "disk speed"), Level.FAILED, "No space left on device")


def test_a_silo_that_never_joined(home: SiloHome) -> None:
    (home.identity / "server.json").unlink()
    expect(line(silo(home), "enrolment"), Level.FAILED, "has not joined", "fedplat silo invite hospital-a")


def test_an_enrolment_that_is_damaged(home: SiloHome) -> None:
    (home.identity / "server.json").write_text("{}")
    expect(line(silo(home), "enrolment"), Level.FAILED, "server.json is damaged", "fedplat client join")


def test_a_key_that_is_damaged(home: SiloHome) -> None:
    home.key.write_bytes(home.key.read_bytes()[:100])
    expect(line(silo(home), "enrolment"), Level.FAILED, "holds no private key", "backup")


def test_a_key_that_is_not_the_enrolled_one(home: SiloHome) -> None:
    save_key(new_key(), home.key)
    expect(line(silo(home), "enrolment"), Level.FAILED, "the enrolment of silo hospital-a was interrupted")


def test_a_policy_that_is_broken(home: SiloHome) -> None:
    home.policy.write_text("min_cohrt = 3\n")
    expect(line(silo(home), "policy"), Level.FAILED, "min_cohrt", "fedplat client policy")


def test_a_gpu_that_the_policy_forbids(home: SiloHome) -> None:
    home.policy.write_text("allowed_gpus = [0]\n")
    expect(line(silo(home, gpus="1"), "policy"), Level.FAILED, "does not allow GPU 1")


def test_a_process_that_waits(home: SiloHome) -> None:
    status = Status(silo=home.name, server="localhost:1", pid=4711, started_at=0, connected=False, since=0)
    with home.lock():
        write_status(home, status)
        found = silo(home)
        expect(line(found, "process"), Level.WARNING, "process 4711 runs and waits for the server at localhost:1")
    set_paused(home, True)
    expect(line(silo(home), "process"), Level.WARNING, "paused", "pause --off")


def test_a_ledger_that_was_changed(home: SiloHome) -> None:
    book = begin_book(home)
    book.register("heart", call_the_roll(home.root / "heart.csv", "heart", "pid", book.key))
    book.set_budget("heart", epsilon=1.0, delta=1e-5, unit="patient")
    expect(line(silo(home), "ledger"), Level.OK, "3 entries")
    with closing(sqlite3.connect(home.ledger)) as database:
        database.execute("DROP TRIGGER entries_no_update")
        database.execute("UPDATE entries SET fields = replace(fields, '1.0', '9.0') WHERE kind = 'budget'")
        database.commit()
    expect(line(silo(home), "ledger"), Level.FAILED, "was changed", "reconcile")


def test_a_ledger_that_is_gone(home: SiloHome) -> None:
    begin_book(home)
    home.ledger.unlink()
    expect(line(silo(home), "ledger"), Level.FAILED, "is gone", "backup")
    assert not home.ledger.exists(), "to look makes nothing"


def test_data_that_are_gone(home: SiloHome) -> None:
    (home.root / "heart.csv").unlink()
    expect(line(silo(home), "datasets"), Level.FAILED, "dataset heart: there is nothing at", "--data heart=PATH")
    home.datasets.unlink()
    expect(line(silo(home), "datasets"), Level.WARNING, "no dataset is known", "--data NAME=PATH")


def test_a_list_of_excluded_patients_that_is_none(home: SiloHome) -> None:
    (home.path / "exclude.csv").write_text("pid,why\n1,2\n")
    (home.path / "exclude.csv").chmod(0o600)
    expect(line(silo(home), "datasets"), Level.FAILED, "exclude.csv is not a list of patients")


class TestWorkers:
    """NCCL cannot be broken here, so its answer is; a gloo that cannot meet is real."""

    def test_gpus_that_pytorch_does_not_see(
        self, home: SiloHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "0000:01:00.0").mkdir()
        monkeypatch.setattr(devices, "_DRIVER", tmp_path)
        answer = devices.Sum(num_ranks=2, gpus=(), is_right=True, torch="2.6")
        monkeypatch.setattr(devices, "add_up", lambda _: answer)
        expect(line(silo(home), "workers"), Level.WARNING, "PyTorch sees none", "CUDA_VISIBLE_DEVICES")

    def test_nccl_that_fails(self, home: SiloHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "0000:01:00.0").mkdir()
        monkeypatch.setattr(devices, "_DRIVER", tmp_path)

        def add_up(_gpus: tuple[int, ...]) -> devices.Sum:
            raise devices.Broken("NCCL error: unhandled system error")

        monkeypatch.setattr(devices, "add_up", add_up)
        expect(line(silo(home), "workers"), Level.FAILED, "unhandled system error", "nvidia-smi", "--workers")

    def test_two_gpus_that_work(self, home: SiloHome, monkeypatch: pytest.MonkeyPatch) -> None:
        answer = devices.Sum(num_ranks=2, gpus=("NVIDIA A", "NVIDIA A"), is_right=True, torch="2.6")
        monkeypatch.setattr(devices, "add_up", lambda _: answer)
        expect(line(silo(home), "workers"), Level.OK, "2 GPUs (NVIDIA A), NCCL all-reduce of two workers ok")

    def test_workers_that_cannot_meet(self, home: SiloHome, monkeypatch: pytest.MonkeyPatch) -> None:
        """A GPU that is not there: both processes really run, and fail."""
        expect(line(silo(home, gpus="7,8"), "workers"), Level.FAILED, "cannot add up a number together")
