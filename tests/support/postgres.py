"""A private PostgreSQL from the binaries of this machine: a temporary folder, one port on 127.0.0.1, one password."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

USER = "fedplat"


def find_binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`: on PATH, else Debian's newest; None without one."""
    on_path = shutil.which("pg_ctl")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return next((path for path in folders if (path / "initdb").exists() and (path / "pg_ctl").exists()), None)


@dataclass
class PrivatePostgres:
    """A server of our own, that nobody else can find or log in to."""

    binaries: Path
    folder: Path
    port: int
    password: str = field(repr=False)

    def url(self, dbname: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{dbname}"

    def create_database(self, name: str) -> str:
        """Make an empty database; returns its URL."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def clear_database(self, name: str) -> str:
        """Empty a database, and end whoever is still connected: much faster than a new one. Returns its URL."""
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self.url(name)

    def start(self) -> None:
        """Start it and wait until it answers."""
        # No fsync: the tests kill processes, never the machine.
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -F"
        self._run("pg_ctl", "start", "-w", "-D", self.data, "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        """Stop it at once, as an outage would; connections break, committed data stays."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self.data)

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def init(self) -> None:
        """Make the data folder."""
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        _give(password_file)
        rights = ("-A", "scram-sha-256", f"--pwfile={password_file}", "-U", USER)
        self._run("initdb", "-D", self.data, "-E", "UTF8", "--locale=C", "--no-sync", *rights)

    def _run(self, program: str, *arguments: str) -> None:
        # PostgreSQL refuses to run as root.
        user = "postgres" if os.geteuid() == 0 else None
        command = [str(self.binaries / program), *arguments]
        done = subprocess.run(
            command,
            user=user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")


@contextmanager
def private_postgres() -> Iterator[PrivatePostgres]:
    """A running PostgreSQL; gone, with its data, at the end. Skips without binaries, but fails where CI is set."""
    binaries = find_binaries()
    if binaries is None:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("no PostgreSQL binaries on PATH or in /usr/lib/postgresql/*/bin")
    # A short path of its own: a Unix socket's is at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="fp-pg-", dir="/tmp") as name:
        _give(Path(name))
        server = PrivatePostgres(binaries, Path(name), _free_port(), secrets.token_urlsafe(16))
        server.init()
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _give(path: Path) -> None:
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(path, owner.pw_uid, owner.pw_gid)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
