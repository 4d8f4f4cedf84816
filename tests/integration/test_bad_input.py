"""What goes wrong at a silo or a server, and what a person then reads: what happened, to which thing, what to do."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation import Federation, add_constant, federation, wait_until
from tests.support.probe import install_probe
from tests.support.specs import probe, table

ALLOW_ALL = 'allowed_tasks = ["*"]\nmax_parallel_runs = 16\n'

GOOD = "61,f,no\n47,m,yes\n"
DATA = {  # a dataset, its file, and what the run says of it
    "no-column": ("age,ill\n61,no\n", "its data has no column 'sex'"),
    "category": (f"age,sex,ill\n{GOOD}50,x,no\n", "column 'sex' holds a category that the schema does not list"),
    "target": (f"age,sex,ill\n{GOOD}50,f,maybe\n", "the target 'ill' holds a class that the schema does not list"),
    "nan": (f"age,sex,ill\n{GOOD}NaN,f,no\n", "column 'age' has a missing value, which the schema refuses"),
    "text": (f"age,sex,ill\n{GOOD}old,f,no\n", "column 'age' holds something that is not a finite number"),
    "empty": ("", "its data has no column 'age'"),
    "no-records": ("age,sex,ill\n", "its dataset 'no-records' has no records in the training set"),
    "ragged": (f"age,sex,ill\n{GOOD}50,f\n", "its dataset 'ragged' cannot be read"),
}
DETAIL = {  # what the silo's own log adds
    "category": "category.csv:4: column 'sex' holds 'x'",
    "target": "target.csv:4: column 'ill' holds 'maybe'",
    "nan": "nan.csv:4: column 'age' is empty",
    "text": "text.csv:4: column 'age' holds 'old'",
    "ragged": "ragged.csv: record 3 has 2 cells, the header 3",
}


@pytest.fixture(scope="module")
def fed() -> Iterator[Federation]:
    """A server and the silo `s`. At the end: no traceback on any console, in the server's log or in the silo's."""
    with federation() as made:
        made.join("s", policy=ALLOW_ALL, data=datasets(made.folder))
        yield made
        logs = [made.folder / "server" / "server" / "server.log", *made.folder.glob("silos/silos/*/silo.log")]
        assert len(logs) > 1
        for text in (made.all_logs(), *(path.read_text() for path in logs)):
            assert "Traceback" not in text, text


def datasets(folder: Path) -> dict[str, Path]:
    contents = {name: content for name, (content, _) in DATA.items()} | {"one-class": "age,sex,ill\n61,f,no\n47,m,no\n"}
    for name, content in contents.items():
        (folder / f"{name}.csv").write_text(content)
    return {name: folder / f"{name}.csv" for name in contents}


def refused(fed: Federation, *words: str, stdin: str | None = None, env: dict[str, str] | None = None) -> str:
    """The message of a command that must fail with status 1: what happened, and on a line of its own what to do."""
    done = fed.attempt(*words, stdin=stdin, env=env)
    assert done.returncode == 1, done
    assert done.stderr.startswith("error: "), done
    assert "\n  " in done.stderr, "no hint"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def at(fed: Federation, silo: str) -> tuple[str, ...]:
    return "--silo", silo, "--home", str(fed.folder / "silos")


def invite(fed: Federation, silo: str, lifetime_s: int = 60) -> str:
    return str(fed.ask("/invites", {"silo": silo, "lifetime_s": lifetime_s})["invite"])


# -- the spec -----------------------------------------------------------------------------------------------------


def test_a_spec_that_cannot_be_understood(fed: Federation) -> None:
    spec = fed.folder / "study.toml"
    spec.write_text(add_constant().replace("count =", "cuont ="))
    said = refused(fed, "run", "submit", str(spec))
    assert "study.toml:" in said
    assert "rounds.cuont: no such key; did you mean 'count'?" in said
    assert "rounds.count: missing" in said
    spec.write_bytes(b"\x89PNG\xff\x00" * 50)
    assert "study.toml is not UTF-8 text" in refused(fed, "run", "submit", str(spec))
    spec.write_text("not toml")
    assert re.search(r"study.toml is not TOML: .*line 1", refused(fed, "run", "submit", str(spec)))
    spec.unlink()
    said = refused(fed, "run", "submit", str(spec))
    assert "study.toml: No such file or directory" in said
    assert "fedplat run init" in said


def test_a_spec_that_names_a_stranger_or_lost_weights(fed: Federation) -> None:
    spec = fed.folder / "study.toml"
    spec.write_text(add_constant(silos=("s", "stranger")))
    said = refused(fed, "run", "submit", str(spec))
    assert "the spec names silos that are not enrolled: stranger" in said
    assert "fedplat silo invite" in said
    spec.write_text(add_constant() + '[model]\ninit = "lost.safetensors"\n')
    said = refused(fed, "run", "submit", str(spec))
    assert "'model.init' names" in said
    assert "lost.safetensors, which cannot be read: No such file or directory" in said


def test_a_run_that_is_not_there_and_one_of_two(fed: Federation) -> None:
    for command in ("show", "watch", "stop", "export"):
        said = refused(fed, "run", command, "nope")
        assert said == "error: there is no run nope\n  See every run: fedplat run list\n"
    runs = [fed.submit(add_constant(name="twin", silos=("s",))) for _ in range(2)]
    said = refused(fed, "run", "show", "twin")
    assert "twin can mean 2 runs: " in said
    assert all(run in said for run in runs)
    for run in runs:
        fed.command("run", "stop", run)
    assert f"run {runs[0]} has no weights yet" in refused(fed, "run", "export", runs[0], "--to", str(fed.folder / "x"))


# -- the data -----------------------------------------------------------------------------------------------------


def test_data_that_does_not_fit_is_refused_in_words(fed: Federation) -> None:
    runs = {name: fed.submit(table(name)) for name in (*DATA, "unknown", "one-class")}
    said = {name: text for name, (_, text) in DATA.items()} | {"unknown": "it has no dataset 'unknown'"}
    for name, text in said.items():
        assert fed.wait_for(runs[name], "failed")["reason"] == f"0 of at least 1 silos take part (s: {text})"
        assert re.search(rf"s +refused +{re.escape(text)}", fed.command("run", "show", runs[name]))
    log = (fed.silo_home("s") / "silo.log").read_text()
    for name, detail in DETAIL.items():
        assert detail in log, name
        assert detail not in fed.log("s") + fed.log("server"), "for the log alone"

    view = fed.wait_for(runs["one-class"])
    assert view["rounds_committed"] == 1
    shown = fed.command("run", "show", runs["one-class"])
    assert re.search(r"s +accepted +2 +its training records are all of one class of 'ill'", shown)


def test_a_dataset_that_is_not_there(fed: Federation) -> None:
    said = refused(fed, "client", "join", *at(fed, "s"), "--data", f"ct={fed.folder}/nothing.csv")
    assert "dataset ct: there is nothing at" in said
    assert "nothing.csv" in said
    said = refused(fed, "client", "join", *at(fed, "s"), "--data", "nothing.csv")
    assert "'nothing.csv' does not name a dataset\n  Write --data NAME=PATH" in said


# -- the task -----------------------------------------------------------------------------------------------------


def test_tasks_that_are_missing_or_not_allowed(fed: Federation) -> None:
    missing = fed.submit(probe())
    assert "s: the task 'probe' is not installed there" in fed.wait_for(missing, "failed")["reason"]
    assert "entry point fedplat.tasks" in fed.live(missing)["silos"][0]["words"]
    policy = fed.silo_home("s") / "policy.toml"
    policy.write_text("max_parallel_runs = 16\n")
    forbidden = fed.wait_for(fed.submit(probe()), "failed")
    assert "s: its policy does not allow this: allowed_tasks" in forbidden["reason"]
    policy.write_text("allowed_tsaks = 3\n")
    broken = fed.wait_for(fed.submit(probe()), "failed")
    assert "s: its policy does not allow this: the policy file is broken" in broken["reason"]
    assert "no such key; did you mean 'allowed_tasks'?" in (fed.silo_home("s") / "silo.log").read_text()
    assert "no such key; did you mean 'allowed_tasks'?" in refused(fed, "client", "policy", *at(fed, "s"))
    policy.write_text(ALLOW_ALL)


def test_silos_that_differ_are_left_out_by_name(fed: Federation) -> None:
    same, other = install_probe(fed.folder / "v1"), install_probe(fed.folder / "v2", "2.0")
    environments = {
        "p1": same,
        "p2": same,
        "p3": other,
        "p4": same | {"PROBE_WIDTH": "5"},
        "p5": same | {"PROBE_FROZEN": "2"},
    }
    for silo, env in environments.items():
        fed.join(silo, policy=ALLOW_ALL, env=env, wait=False)
    fed.wait_connected(*environments)
    run = fed.submit(probe(list(environments), rounds=1000))
    over = f"run {run} is over"
    wait_until(lambda: fed.live(run)["state"] == "running", 120, fed.all_logs)
    wait_until(lambda: all(over in fed.log(silo) for silo in ("p3", "p4", "p5")), 15, fed.all_logs)
    assert not fed.live(run)["final"], "whoever is left out is free for other runs at once"
    wait_until(lambda: fed.live(run)["rounds_committed"] > 0, 30, fed.all_logs)
    fed.command("run", "stop", run)
    shown = fed.command("run", "show", run)
    assert re.search(r"p3 +refused .*it has another version of the task 'probe' than the others", shown)
    assert re.search(r"p4 +refused .*its model has another layout than the others", shown)
    assert re.search(r"p5 +refused .*its frozen parameters differ from the others'", shown)
    assert fed.snapshot(run)["rounds"][0]["cohort"] == ["p1", "p2"]
    for silo in environments:
        assert fed.stop(silo) == 0


# -- invites ------------------------------------------------------------------------------------------------------


def test_invites_that_are_not_good(fed: Federation) -> None:
    def join(silo: str, line: str) -> str:
        return refused(fed, "client", "join", *at(fed, silo), "--invite", "-", stdin=line)

    line = invite(fed, "new")
    assert "this is not an invite" in join("new", "hello")
    assert "the invite was damaged in copying" in join("new", line[:60] + ("A" if line[60] != "A" else "B") + line[61:])
    assert "the invite was damaged in copying" in join("new", line[:-3])
    assert "the invite is for silo new, not other\n  Join with --silo new." in join("other", line)
    newer = invite(fed, "new")
    assert "this invite was cancelled at" in join("new", line)
    fed.start("new", "client", "join", *at(fed, "new"), "--invite", "-", stdin=newer)
    fed.wait_connected("new")
    fed.stop("new")
    shutil.rmtree(fed.silo_home("new"))
    said = join("new", newer)
    assert "this invite was already used at" in said
    assert "fedplat silo invite new" in said
    assert "this invite expired at" in join("late", invite(fed, "late", lifetime_s=0))
    assert "the invite file /nowhere/invite cannot be read" in refused(
        fed, "client", "join", *at(fed, "late"), "--invite", "@/nowhere/invite"
    )
    said = refused(fed, "client", "join", *at(fed, "never"))
    assert "silo never has not joined a federation yet" in said
    assert "fedplat silo invite never" in said


def test_names_that_nobody_can_have_and_silos_that_are_not_there(fed: Federation) -> None:
    assert "'Hospital A' cannot be the name of a silo" in refused(fed, "silo", "invite", "Hospital A")
    assert "silo s is enrolled already\n  For a new key: fedplat silo rotate s" in refused(fed, "silo", "invite", "s")
    for command in ("show", "revoke", "rotate"):
        assert "silo nobody" in refused(fed, "silo", command, "nobody")


# -- the server ---------------------------------------------------------------------------------------------------


def test_another_server_at_the_address(fed: Federation) -> None:
    with federation() as other:
        fed.stop("s")
        said = refused(fed, "client", "join", *at(fed, "s"), "--server", f"localhost:{other.port}")
        assert f"the server at localhost:{other.port} shows a certificate that is not signed by the CA" in said
        words = ("--invite", invite(fed, "lost"), "--server", f"localhost:{other.port}")
        said = refused(fed, "client", "join", *at(fed, "lost"), *words)
        assert "the server's CA is not the one in the invite" in said
    said = refused(fed, "client", "join", *at(fed, "lost"), *words)
    assert f"the server at localhost:{other.port} does not answer" in said
    assert "Is the address right, the server up, and the way there open?" in said
    fed.join("s", data=datasets(fed.folder))


def test_a_server_that_cannot_start(fed: Federation, tmp_path: Path) -> None:
    said = refused(fed, "server", "start")
    assert f"{fed.folder}/server/server is in use by another process (pid {fed.processes['server'].pid})" in said
    new = ("server", "start", "--home", str(tmp_path), "--host", "127.0.0.1", "--port")
    said = refused(fed, *new, str(fed.port))
    assert f"cannot listen on 127.0.0.1:{fed.port}: Address already in use" in said
    assert "choose one with --port" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    said = refused(fed, *new, port, "--database", "postgresql://me:secret-word@127.0.0.1:1/study")
    assert "the database postgresql://me@127.0.0.1:1/study cannot be used" in said
    assert "secret-word" not in said
    assert "fedplat does not work on mysql" in refused(fed, *new, port, "--database", "mysql://me@host/study")
    assert not (tmp_path / "server" / "server.json").exists(), "a database that cannot be used is not remembered"


def test_a_server_home_that_is_damaged(fed: Federation, tmp_path: Path) -> None:
    start = ("server", "start", "--home", str(tmp_path), "--host", "127.0.0.1", "--port", "1")
    home = tmp_path / "server"
    home.mkdir(mode=0o700)
    (home / "server.json").write_text('{"port": ')
    said = refused(fed, *start)
    assert f"{home}/server.json cannot be understood: Invalid JSON" in said
    (home / "server.json").write_text('{"port": 1, "prot": 2}')
    assert "server.json cannot be understood: prot: Extra inputs are not permitted" in refused(fed, *start)
    (home / "server.json").unlink()
    home.chmod(0o755)
    said = refused(fed, *start)
    assert f"{home} is open to other users (mode 0755) and holds secrets\n  Run: chmod 700 {home}" in said


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("ca/ca.pem", "ca/ca.pem holds no private key that can be read"),
        ("fedplat.db", "fedplat.db cannot be used: file is not a database"),
    ],
)
def test_a_server_file_that_is_damaged(fed: Federation, tmp_path: Path, file: str, says: str) -> None:
    path = tmp_path / "server" / file
    path.parent.mkdir(parents=True)
    for folder in (tmp_path / "server", path.parent):
        folder.chmod(0o700)
    path.write_bytes(b"garbage\n" * 100)
    path.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    assert says in refused(fed, "server", "start", "--home", str(tmp_path), "--host", "127.0.0.1", "--port", port)


def test_nobody_answers(fed: Federation, tmp_path: Path) -> None:
    for words in (("run", "list"), ("silo", "list"), ("silo", "invite", "a")):
        said = refused(fed, *words, "--home", str(tmp_path))
        assert f"no server answers in {tmp_path}/server" in said
        assert "fedplat server start" in said


# -- the silo's home ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_process_for_one_silo(fed: Federation) -> None:
    said = refused(fed, "client", "join", *at(fed, "s"))
    assert f"silos/s is in use by another process (pid {fed.processes['s'].pid})" in said
    copy = fed.folder / "copy" / "silos"
    shutil.copytree(fed.folder / "silos" / "silos" / "s", copy / "s")
    for folder in (copy.parent, copy):
        folder.chmod(0o700)
    said = refused(fed, "client", "join", "--silo", "s", "--home", str(copy.parent))
    assert "another process is connected as silo s, from another machine or folder" in said
    assert "enrol this machine as a silo of its own" in said
    assert fed.connected("s")


def test_a_silo_home_that_is_damaged(fed: Federation) -> None:
    home = fed.silo_home("broken")
    fed.start("broken", "client", "join", *at(fed, "broken"), "--invite", "-", stdin=invite(fed, "broken"))
    fed.wait_connected("broken")
    fed.stop("broken")

    def damaged(path: Path, content: str) -> str:
        whole = path.read_bytes() if path.exists() else None
        path.write_text(content)
        said = refused(fed, "client", "join", *at(fed, "broken"))
        if whole is None:
            path.unlink()
        else:
            path.write_bytes(whole)
        return said

    said = damaged(home / "policy.toml", "max_threads = many\n")
    assert re.search(r"broken/policy.toml cannot be read: .*line 1", said)
    assert "move it away to get a fresh one" in said
    assert "max_threads: should be less than or equal to" in damaged(home / "policy.toml", "max_threads = 99999\n")
    said = damaged(home / "identity" / "key.pem", "garbage")
    assert "identity/key.pem holds no private key that can be read\n  Restore it from a backup" in said
    said = damaged(home / "identity" / "server.json", "{}")
    assert "identity/server.json is damaged\n  Run `fedplat client join` again with the --invite" in said
    assert "datasets.toml cannot be read" in damaged(home / "datasets.toml", "ct =")
    assert "boot is damaged: it should hold one number" in damaged(home / "boot", "many")
    (home / "identity" / "key.pem").chmod(0o644)
    said = refused(fed, "client", "join", *at(fed, "broken"))
    assert "key.pem is open to other users (mode 0644)\n  Run: chmod 600" in said
    home.chmod(0o750)
    said = refused(fed, "client", "join", *at(fed, "broken"))
    assert f"{home} is open to other users (mode 0750) and holds secrets\n  Run: chmod 700" in said


def test_a_clock_that_is_wrong(fed: Federation) -> None:
    """The silo runs with Python's clock an hour fast; the machine's own cannot be set in a test."""
    line = invite(fed, "early")
    code = "import time; real = time.time; time.time = lambda: real() + 3600; from fedplat.cli import main; main()"
    words = ("client", "join", *at(fed, "early"), "--invite", line)
    fed.start("early", *words, program=(sys.executable, "-c", code))
    fed.wait_connected("early")
    told = r"this machine's clock is 3(599|60\d) s ahead of the server's"
    wait_until(lambda: re.search(told, fed.log("early")), 20, lambda: fed.log("early"))
    assert "Set the clock: timedatectl set-ntp true" in fed.log("early")
    fed.stop("early")


def test_a_revoked_silo_is_told_so(fed: Federation) -> None:
    fed.start("gone", "client", "join", *at(fed, "gone"), "--invite", "-", stdin=invite(fed, "gone"))
    fed.wait_connected("gone")
    fed.command("silo", "revoke", "gone")
    assert fed.processes.pop("gone").wait(10) == 1
    assert "error: silo gone was revoked" in fed.log("gone")
    said = refused(fed, "client", "join", *at(fed, "gone"))
    assert "silo gone was revoked\n  fedplat silo invite gone lets it back in" in said


def test_an_export_into_a_folder_that_has_one(fed: Federation) -> None:
    run = fed.submit(add_constant(rounds=1, silos=("s",)).replace('name = "none"', 'name = "one-class"'))
    fed.wait_for(run)
    fed.command("run", "export", run, "--to", str(fed.folder / "model"))
    said = refused(fed, "run", "export", run, "--to", str(fed.folder / "model"))
    assert "model/model.safetensors exists already\n  name another folder with --to" in said
    assert "cannot write into /proc/model" in refused(fed, "run", "export", run, "--to", "/proc/model")
