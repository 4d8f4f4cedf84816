"""What a silo knows of its peers: first sight, changes that are refused, pins, and two writers at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedplat import durable
from fedplat.durable import Filesystem
from fedplat.errors import FedplatError, HomeError, IdentityError, NotFoundError, WireError
from fedplat.home import SiloHome
from fedplat.identity import show_fingerprint
from fedplat_silo.commands import client
from fedplat_silo.peers import MAX_PEERS, Peers

A, B, C = ("a1" * 32, "b2" * 32, "c3" * 32)


@pytest.fixture
def home(tmp_path: Path) -> SiloHome:
    made = SiloHome(tmp_path, "hospital-a")
    made.create()
    return made


@pytest.fixture
def peers(home: SiloHome) -> Peers:
    return Peers(home.peers)


def test_nobody_is_known_at_first(peers: Peers) -> None:
    assert (peers.known(), peers.pinned(), peers.entries()) == ({}, frozenset(), [])


def test_first_sight_is_kept(home: SiloHome, peers: Peers) -> None:
    peers.remember({"hospital-c": C, "hospital-b": B})
    assert Peers(home.peers).known() == {"hospital-b": B, "hospital-c": C}
    first, second = peers.entries()
    assert (first.name, second.name, first.pinned) == ("hospital-b", "hospital-c", False)
    assert first.first_seen is not None
    assert abs(datetime.now(UTC) - first.first_seen) < timedelta(minutes=1)
    assert home.peers.stat().st_mode & 0o777 == 0o600
    assert home.peers.parent == home.identity


def test_what_is_known_already_writes_nothing(home: SiloHome, peers: Peers) -> None:
    peers.remember({"hospital-b": B})
    before = home.peers.stat()
    peers.remember({"hospital-b": B})
    peers.remember({})
    assert (home.peers.stat().st_ino, home.peers.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_changed_key_is_refused_and_nothing_of_its_roster_is_kept(peers: Peers) -> None:
    peers.remember({"hospital-b": B})
    with pytest.raises(IdentityError, match="hospital-b") as caught:
        peers.remember({"hospital-d": A, "hospital-b": C})
    assert "peers pin hospital-b" in caught.value.hint
    assert peers.known() == {"hospital-b": B}


def test_a_pin_ahead_of_first_sight(peers: Peers) -> None:
    peers.pin("hospital-b", show_fingerprint(B).upper())
    assert peers.known() == {"hospital-b": B}
    assert peers.pinned() == {"hospital-b"}
    assert peers.entries()[0].first_seen is None
    with pytest.raises(IdentityError):
        peers.remember({"hospital-b": C})
    peers.remember({"hospital-b": B})
    (seen,) = peers.entries()
    assert seen.first_seen is not None
    assert seen.pinned


def test_a_pin_takes_the_place_of_another_key(peers: Peers) -> None:
    peers.remember({"hospital-b": B})
    peers.pin("hospital-b", B)
    assert peers.entries()[0].first_seen is not None
    peers.pin("hospital-b", C)
    peers.remember({"hospital-b": C})
    with pytest.raises(IdentityError):
        peers.remember({"hospital-b": B})


def test_forgetting(peers: Peers) -> None:
    peers.pin("hospital-b", B)
    peers.forget("hospital-b")
    assert peers.pinned() == frozenset()
    peers.remember({"hospital-b": C})
    assert (peers.known(), peers.pinned()) == ({"hospital-b": C}, frozenset())
    with pytest.raises(NotFoundError, match="hospital-z"):
        peers.forget("hospital-z")


@pytest.mark.parametrize(("name", "key"), [("Hospital B", B), ("../b", B), ("hospital-b", "abc"), ("hospital-b", "")])
def test_what_is_no_name_or_no_fingerprint(home: SiloHome, peers: Peers, name: str, key: str) -> None:
    with pytest.raises(WireError):
        peers.pin(name, key)
    with pytest.raises(WireError):
        peers.remember({"hospital-d": A, name: key})
    assert not home.peers.exists()


DAMAGED = [
    "",
    "[]",
    '{"peers": [{"name": "b"}]}',
    '{"peers": [{"name": "b", "fingerprint": "' + B + '", "trust": true}]}',
    json.dumps({"peers": [{"name": "b", "fingerprint": B}, {"name": "b", "fingerprint": C}]}),
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_named_and_left_alone(home: SiloHome, peers: Peers, text: str) -> None:
    """It must not read as "nobody is known": then any key would be believed."""
    home.peers.write_text(text)
    calls: list[Callable[[], object]] = [
        peers.known,
        peers.pinned,
        peers.entries,
        partial(peers.remember, {"hospital-b": B}),
        partial(peers.pin, "hospital-b", B),
        partial(peers.forget, "b"),
    ]
    for call in calls:
        with pytest.raises(IdentityError, match=r"peers\.json is damaged"):
            call()
    assert home.peers.read_text() == text


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "peers.json").mkdir()
    with pytest.raises(HomeError, match="cannot be read"):
        Peers(tmp_path / "peers.json").known()
    with pytest.raises(HomeError, match="cannot be opened"):
        Peers(tmp_path / "none" / "peers.json").pin("b", B)


def test_a_server_that_invents_silos_without_end(peers: Peers) -> None:
    peers.remember({f"silo-{i}": A for i in range(MAX_PEERS)})
    with pytest.raises(IdentityError, match="invents"):
        peers.remember({"one-more": A})
    assert len(peers.known()) == MAX_PEERS


def remember_each(path: Path, names: list[str]) -> None:
    for name in names:
        Peers(path).remember({name: B})


def test_many_writers_at_a_time(home: SiloHome) -> None:
    """Threads of the silo's process and a command of its administrator: nobody's change is lost."""
    code = (
        "import sys; from pathlib import Path; from fedplat_silo.peers import Peers\n"
        f"for i in range(20): Peers(Path(sys.argv[1])).pin(f'pinned-{{i}}', '{C}')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(home.peers)])
    names = [[f"silo-{t}-{i}" for i in range(20)] for t in range(4)]
    threads = [threading.Thread(target=remember_each, args=(home.peers, mine)) for mine in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.wait(30) == 0
    known = Peers(home.peers)
    assert set(known.known()) == {name for mine in names for name in mine} | {f"pinned-{i}" for i in range(20)}
    assert len(known.pinned()) == 20


class Failing(Filesystem):
    """The disk fails at the given step."""

    def __init__(self, step: str) -> None:
        self.step = step

    def rename(self, source: Path, target: Path) -> None:
        if self.step == "rename":
            raise OSError(28, "No space left on device")
        super().rename(source, target)

    def fsync(self, fd: int) -> None:
        if self.step == "fsync":
            raise OSError(5, "Input/output error")
        super().fsync(fd)


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_disk_that_fails_leaves_the_old_file(
    home: SiloHome, peers: Peers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    peers.remember({"hospital-b": B})
    monkeypatch.setattr(durable, "filesystem", Failing(step))
    with pytest.raises(OSError, match=r"error|space"):
        peers.pin("hospital-c", C)
    monkeypatch.undo()
    assert peers.known() == {"hospital-b": B}
    assert sorted(path.name for path in home.identity.iterdir()) == ["peers.json", "peers.lock"]


def run(home: SiloHome, *words: str) -> str:
    command = [*words, "--silo", home.name, "--home", str(home.root)]
    result = CliRunner().invoke(client, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands(home: SiloHome, peers: Peers) -> None:
    assert "no other silo is known yet" in run(home, "peers", "list")
    assert json.loads(run(home, "peers", "list", "--json")) == []
    peers.remember({"hospital-b": B})
    shown = run(home, "peers", "list")
    assert "hospital-b  not confirmed, first seen 20" in shown
    assert "0 of 1 are confirmed" in shown
    assert show_fingerprint(B) in shown
    assert "is confirmed" in run(home, "peers", "pin", "hospital-b", *show_fingerprint(B).split())
    assert "0 of" not in run(home, "peers", "list")
    assert "before it was seen" in run(home, "peers", "pin", "hospital-c", C)
    assert "hospital-c  pinned, not seen yet" in run(home, "peers", "list")
    assert "another key" in run(home, "peers", "pin", "hospital-b", show_fingerprint(A))
    listed = {entry["name"]: entry for entry in json.loads(run(home, "peers", "list", "--json"))}
    assert listed["hospital-b"]["fingerprint"] == A
    assert json.loads(run(home, "peers", "pin", "hospital-b", B, "--json"))["pinned"] is True
    assert "peers pin hospital-b" in run(home, "peers", "forget", "hospital-b")
    assert json.loads(run(home, "peers", "forget", "hospital-c", "--json")) == {"forgotten": "hospital-c"}
    assert peers.known() == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pin", "hospital-a", A], "this silo itself"),
        (["pin", "hospital-b", "abcd"], "not a fingerprint"),
        (["pin", "hospital-b"], "Missing argument"),
        (["forget", "hospital-b"], "no silo 'hospital-b' is known here"),
    ],
)
def test_commands_that_cannot_be_meant(home: SiloHome, words: list[str], message: str) -> None:
    result = CliRunner().invoke(client, ["peers", *words, "--silo", home.name, "--home", str(home.root)])
    assert result.exit_code != 0
    error = result.exception
    assert message in (f"{error.message}" if isinstance(error, FedplatError) else result.output)
    assert not home.peers.exists()
