"""A server as the checks see it: what several of them need is read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedplat.errors import HomeLockedError
from fedplat.home import ServerHome
from fedplat.identity import Certified, load_certified
from fedplat_server.settings import Settings
from fedplat_server.store.session import Database


@dataclass(frozen=True)
class Visit:
    """Properties raise FedplatError; the check that asks first tells it."""

    home: ServerHome

    @cached_property
    def settings(self) -> Settings:
        """How the server was told to run."""
        return Settings.remembered(self.home)

    @cached_property
    def holder(self) -> HomeLockedError | None:
        """Who works in the home, None if nobody does."""
        try:
            with self.home.lock():
                return None
        except HomeLockedError as error:
            return error

    @cached_property
    def authority(self) -> Certified:
        """The federation's CA."""
        return load_certified(self.home.ca / "ca.pem")

    def open_database(self) -> Database:
        """Not connected yet, and to be closed by whoever asks."""
        return Database(self.settings.database_url(self.home))

    @property
    def local_host(self) -> str:
        """Where the server can be reached from its own machine."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)  # noqa: S104

    @property
    def files(self) -> tuple[Path, ...]:
        """All that has to be private."""
        home = self.home
        folders = home.ca, home.tls, home.keys, home.runs, home.admin_socket, home.path / "server.json"
        return (*folders, *home.path.glob(f"{home.db.name}*"), *home.path.glob("server.log*"))
