"""No value, file name or error text of a silo reaches the server: canaries are planted everywhere, and searched for in
every byte that the server receives, stores, logs and prints."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.federation import Federation, federation
from tests.support.probe import install_probe
from tests.support.specs import probe, table

CANARY = "KanarienvogelXQ"
RECORDER = Path(__file__).parents[1] / "support" / "recording_server.py"

# Where the canary sings in the file, beside the patient's key and the column that no schema names.
CELLS = {
    "number": f"{CANARY},f,no",
    "category": f"50,{CANARY},no",
    "target": f"50,f,{CANARY}",
    "ragged": f"50,f,no,{CANARY}",
    "good": "50,f,no",
}


@pytest.fixture(scope="module")
def fed() -> Iterator[Federation]:
    """A server that writes down what it receives, and silos whose data, files, folders and tasks hold canaries."""
    with federation(start=False) as made:
        made.start_server(program=(sys.executable, str(RECORDER), str(made.folder / "received")))
        policy = 'allowed_tasks = ["*"]\nmax_parallel_runs = 16\nshare_metrics = "per-silo"\n'
        data = {name: write_data(made.folder / f"{CANARY}-folder", name) for name in CELLS}
        made.join("s", policy=policy, data=data, env=install_probe(made.folder / f"{CANARY}-site"))
        yield made


def write_data(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [f"{CANARY}-{i},{CANARY},{40 + i},{'fm'[i % 2]},{('no', 'yes')[i % 2]}" for i in range(30)]
    path = folder / f"{CANARY}-{name}.csv"
    path.write_text("\n".join(["mrn,note,age,sex,ill", *rows, f"{CANARY}-x,{CANARY},{CELLS.get(name, '')}"]) + "\n")
    return path


def test_no_canary_reaches_the_server(fed: Federation) -> None:
    runs = {name: fed.submit(table(name, rounds=2, patient="mrn")) for name in CELLS}
    runs |= {where: fed.submit(probe(data="good", rounds=2, fail=where)) for where in ("load", "train")}
    reasons = {
        "number": "column 'age' holds something that is not a finite number",
        "category": "column 'sex' holds a category",
        "target": "the target 'ill' holds a class",
        "ragged": "its dataset 'ragged' cannot be read",
        "load": "the task failed while preparing",
        "train": "the task failed while training",
    }
    for name, reason in reasons.items():
        assert reason in fed.wait_for(runs[name], "failed")["reason"], name
    assert fed.wait_for(runs["good"])["rounds_committed"] == 2

    (fed.silo_home("s") / "policy.toml").write_text(f'max_threads = "{CANARY}"\n')
    runs["policy"] = fed.submit(table("good"))
    assert "the policy file is broken" in fed.wait_for(runs["policy"], "failed")["reason"]

    log = (fed.silo_home("s") / "silo.log").read_text()
    for cell in ("number", "category", "target"):
        assert f"{CANARY}-{cell}.csv:32: column" in log, "the silo's own log has the detail"
    assert f"(given: '{CANARY}')" in log
    for where in ("load", "train"):
        assert f"cannot {where} mrn,note,age,sex,ill\n{CANARY}-0" in log

    for command in (("run", "list"), *(("run", "show", run) for run in runs.values()), ("silo", "list")):
        assert CANARY not in fed.command(*command)
        assert CANARY not in fed.command(*command, "--json")
    assert CANARY not in fed.log("server")
    assert CANARY not in fed.log("s"), "nor the silo's console"


def test_no_canary_is_in_what_the_server_received_and_keeps(fed: Federation) -> None:
    received = (fed.folder / "received").read_bytes()
    assert b"query.join" in received, "the recorder heard the replies"
    assert b"number_invalid" in received
    assert CANARY.encode() not in received
    database = fed.folder / "server" / "server" / "fedplat.db"
    with closing(sqlite3.connect(database)) as opened:
        dump = "\n".join(opened.iterdump())
    assert "number_invalid" in dump
    assert CANARY not in dump
    assert fed.stop("server") == 0
    files = [path for path in (fed.folder / "server").rglob("*") if path.is_file()]
    assert database in files
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path
        assert CANARY not in path.name
