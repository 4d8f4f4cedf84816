from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedplat.errors import HomeError, HomeLockedError, WireError
from fedplat.home import Home, ServerHome, SiloHome, fedplat_home, home_id, next_boot, socket_path

REPO = Path(__file__).parents[3]

HOLD = """
import sys
from pathlib import Path
from fedplat.home import ServerHome
with ServerHome(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    home = ServerHome(tmp_path)
    home.create()
    return home


@contextmanager
def holder(home: ServerHome) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(home.root)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_where_the_home_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEDPLAT_HOME", raising=False)
    assert fedplat_home() == tmp_path / ".fedplat"
    monkeypatch.setenv("FEDPLAT_HOME", "/srv/fed")
    assert fedplat_home() == Path("/srv/fed")
    assert fedplat_home("~/mine") == tmp_path / "mine"


@pytest.mark.parametrize("kind", ["server", "silo"])
def test_create_makes_private_folders(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    home: Home = ServerHome(root) if kind == "server" else SiloHome(root, "hospital-a")
    home.create()
    home.create()
    made = [root, *(path for path in root.rglob("*") if path.is_dir())]
    assert len(made) >= 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o720])
def test_an_open_home_is_refused_with_the_cure(home: ServerHome, mode: int) -> None:
    home.path.chmod(mode)
    with pytest.raises(HomeError, match=f"chmod 700 {home.path}"), home.lock():
        pass
    subprocess.run(["chmod", "700", str(home.path)], check=True)
    with home.lock():
        pass


def test_a_missing_home_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match=str(tmp_path)), ServerHome(tmp_path).lock():
        pass


def test_a_file_in_the_way_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "server").write_text("")
    with pytest.raises(HomeError, match=str(tmp_path / "server")):
        ServerHome(tmp_path).create()


def test_two_processes_cannot_share_a_home(home: ServerHome) -> None:
    with holder(home) as process:
        with pytest.raises(HomeLockedError) as refused, home.lock():
            pass
        assert str(home.path) in refused.value.message
        assert f"pid {process.pid})" in refused.value.message
        process.kill()  # nobody unlocks: the kernel does
        process.wait()
        home.lock_file.write_text("a longer line than any pid")
        with home.lock():
            assert home.lock_file.read_text() == f"{os.getpid()}\n"


def test_a_second_lock_in_the_same_process_is_refused(home: ServerHome) -> None:
    with home.lock(), pytest.raises(HomeLockedError), home.lock():
        pass
    with home.lock():
        pass


def test_socket_paths_end_at_107_bytes(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as server:
        longest = Path(folder, "a" * (107 - len(folder) - 1))
        server.bind(str(socket_path(longest)))
    with pytest.raises(HomeError, match=r"108 bytes(.|\n)*FEDPLAT_HOME"):
        socket_path(longest.with_name(longest.name + "a"))
    with pytest.raises(HomeError, match="too long for a Unix socket"):
        ServerHome(tmp_path / ("b" * 100)).create()


def test_a_copied_home_has_another_id(home: ServerHome, tmp_path: Path) -> None:
    first = home_id(home)
    with home.lock():
        assert home_id(home) == first
    copy = ServerHome(tmp_path / "copy")
    copy.root.mkdir()
    shutil.copytree(home.path, copy.path)
    assert home_id(copy) != first
    os.rename(home.path, tmp_path / "moved")
    os.rename(tmp_path / "moved", home.path)
    assert home_id(home) == first


def test_another_machine_gives_another_id(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    first = home_id(home)
    other = home.path / "machine-id"
    other.write_text("f" * 32)
    monkeypatch.setattr("fedplat.home._MACHINE_ID", other)
    assert home_id(home) != first


def test_boots_are_counted(home: ServerHome) -> None:
    assert [next_boot(home), next_boot(home), next_boot(ServerHome(home.root))] == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", b"-1", b"two", b"\xff\xfe", "\u0661".encode(), b"9" * 30])
def test_a_damaged_boot_count_is_named(home: ServerHome, content: bytes) -> None:
    (home.path / "boot").write_bytes(content)
    with pytest.raises(HomeError, match=str(home.path / "boot")):
        next_boot(home)


@pytest.mark.parametrize("name", ["", "A", "-a", "a/b", "..", "a" * 64, "a\n", "ä"])
def test_silo_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(WireError):
        SiloHome(tmp_path, name)


@pytest.mark.parametrize("run", ["", "..", "a/b", ".x", "a\0", "a\n"])
def test_run_ids_cannot_leave_the_folder(home: ServerHome, run: str) -> None:
    with pytest.raises(WireError):
        home.checkpoints(run)
    with pytest.raises(WireError):
        SiloHome(home.root, "a").run(run)
