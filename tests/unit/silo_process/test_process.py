"""The silo as a process: `fedplat client ...` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedplat.home import SiloHome
from fedplat_silo.commands import client
from fedplat_silo.console import silence_flower
from fedplat_silo.enrol import enrol
from tests.unit.silo_process.test_enrol import Registrar
from tests.unit.silo_process.tls import TlsServer

ROOT = Path(__file__).parents[3]
ENV = os.environ | {
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "server", ROOT / "clients"))),
    "PYTHONUNBUFFERED": "1",
}
RUN = "from fedplat.cli import main; main()"
CLIENT = [sys.executable, "-c", RUN, "client"]


@pytest.fixture
def member(home: SiloHome, server: TlsServer) -> SiloHome:
    Registrar(server)
    server.routes["/v1/fedplat/health"] = lambda *_: (200, {})
    server.routes["/v1/fedplat/wake"] = lambda *_: (time.sleep(1), (200, {"messages": False}))[1]
    enrol(home, server.invite())
    return home


def words(home: SiloHome, *more: str) -> list[str]:
    return [*more, "--home", str(home.root)]


@pytest.fixture
def process(member: SiloHome) -> Iterator[subprocess.Popen[str]]:
    command = [*CLIENT, *words(member, "join")]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        assert started.stdout is not None
        for line in started.stdout:
            if "answers" in line:
                break
        yield started
        started.kill()


def call(home: SiloHome, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLIENT, *words(home, *more)], env=ENV, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_within_two_seconds(process: subprocess.Popen[str], number: int) -> None:
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 0
    assert time.monotonic() - begun < 2


def test_a_second_process_in_the_same_home_is_refused(process: subprocess.Popen[str], member: SiloHome) -> None:
    second = call(member, "join")
    assert second.returncode == 1
    assert f"in use by another process (pid {process.pid})" in second.stderr
    assert "Traceback" not in second.stderr


def test_status_while_it_runs_and_after(process: subprocess.Popen[str], member: SiloHome, server: TlsServer) -> None:
    deadline = time.monotonic() + 10
    while not (member.path / "status.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = json.loads(ask(member, "status", "--json"))
    assert (found["running"], found["connected"], found["pid"]) == (True, True, process.pid)
    assert f"connected to the server at {server.address}" in ask(member, "status")
    process.terminate()
    process.wait(10)
    assert "is not running" in ask(member, "status")
    assert json.loads(ask(member, "status", "--json"))["running"] is False
    assert member.log.stat().st_mode & 0o777 == 0o600


def test_revoked_is_said_in_words_and_is_an_error(member: SiloHome, server: TlsServer) -> None:
    problem = {"error": "revoked", "message": "silo hospital-a was revoked", "hint": "fedplat silo invite hospital-a"}
    server.routes["/v1/fedplat/wake"] = lambda *_: (403, problem)
    done = call(member, "join", "--silo", "hospital-a")
    assert done.returncode == 1
    assert "silo hospital-a was revoked\n  fedplat silo invite" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def ask(home: SiloHome, *more: str) -> str:
    result = CliRunner().invoke(client, words(home, *more), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_pause_and_off(member: SiloHome) -> None:
    assert "is paused" in ask(member, "pause")
    assert "is paused" in ask(member, "status")
    assert "takes part again" in ask(member, "pause", "--off")
    assert json.loads(ask(member, "status", "--json"))["paused"] is False


def test_policy_and_fingerprint(member: SiloHome, server: TlsServer) -> None:
    assert "smallest_cohort = 1" in ask(member, "policy")
    assert json.loads(ask(member, "policy", "--json"))["share_metrics"] == "sums"
    shown = json.loads(ask(member, "fingerprint", "--json"))
    assert shown["server_ca"] == server.invite().ca_fingerprint
    line = ask(member, "fingerprint").splitlines()[-1].removeprefix("  fedplat client ").split()
    assert line[:3] == ["peers", "pin", "hospital-a"]
    other = SiloHome(member.root, "hospital-b")
    other.create()
    ask(other, *line, "--silo", "hospital-b")
    assert json.loads(ask(other, "peers", "list", "--json", "--silo", "hospital-b"))[0]["fingerprint"] == shown["silo"]


def test_leaving_tells_the_server_and_removes_the_key(member: SiloHome, server: TlsServer) -> None:
    server.routes["/v1/fedplat/leave"] = lambda *_: (204, "")
    ask(member, "leave", "--yes")
    assert server.seen[-1] == "/v1/fedplat/leave"
    assert not member.key.exists()


def test_which_silo(home: SiloHome) -> None:
    SiloHome(home.root, "hospital-b").create()
    done = call(home, "status")
    assert done.returncode == 1
    assert "hospital-a, hospital-b" in done.stderr
    assert "there is no silo 'c'" in call(home, "status", "--silo", "c").stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "heart=/no/such/file"], "there is nothing at '/no/such/file'"),
        (["--invite", "hello"], "this is not an invite"),
        (["--server", "nowhere"], "not the address of a server"),
        (["--gpus", "a"], "write numbers with commas"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_made(tmp_path: Path, more: list[str], message: str) -> None:
    command = ["join", "--silo", "a", "--home", str(tmp_path), *more]
    result = CliRunner().invoke(client, command)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from fedplat_silo.commands import client;"
        "assert CliRunner().invoke(client, ['join', '--help']).exit_code == 0;"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'flwr','pydantic','torch','httpx','numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_process_has_no_torch_and_no_telemetry() -> None:
    code = (
        "import os, sys; import fedplat_silo.app;"
        "print(os.environ['FLWR_TELEMETRY_ENABLED'], sorted({'torch', 'opacus', 'sqlalchemy'} & set(sys.modules)))"
    )
    environment = {k: v for k, v in ENV.items() if k != "FLWR_TELEMETRY_ENABLED"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 []"


def test_flower_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    from flwr.supercore import log

    silence_flower()
    log(30, "a warning of Flower's")
    assert capfd.readouterr().err == ""
