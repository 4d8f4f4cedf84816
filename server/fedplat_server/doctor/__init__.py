"""What `fedplat doctor` looks at on the server's machine."""

from __future__ import annotations

from collections.abc import Iterator

from fedplat.doctor import Asked, Subject
from fedplat.home import ServerHome
from fedplat_server.doctor import database, keys, process
from fedplat_server.doctor.visit import Visit


def subjects(asked: Asked) -> Iterator[Subject]:
    """The server, if it is asked for or there is one."""
    home = ServerHome(asked.root)
    if asked.server or (asked.silo is None and home.path.exists()):
        visit = Visit(home)
        yield Subject(f"server in {home.path}", (*process.checks(visit), *keys.checks(visit), *database.checks(visit)))
