"""How this server was told to run: given once, remembered in its home when it worked, changed by giving it again."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedplat.durable import write_atomic
from fedplat.errors import HomeError
from fedplat.home import ServerHome

DEFAULT_PORT = 8443


class Settings(BaseModel):
    """`names`: under which the certificate is issued; the first one stands in invites. `database`: a URL, or empty
    for the SQLite file in the home; it may hold a password, so the file is private."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "0.0.0.0"  # noqa: S104 (silos are elsewhere; every request is signed)
    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_PORT
    names: tuple[str, ...] = ()
    database: str = ""

    @classmethod
    def remembered(cls, home: ServerHome, **given: object) -> Self:
        """What was remembered, with what is given now over it. HomeError if that makes no sense."""
        path = _path(home)
        try:
            old = cls.model_validate_json(path.read_bytes()) if path.exists() else cls()
        except ValidationError as error:
            hint = "Mend the file, or remove it and give the options to `fedplat server start` again."
            raise HomeError(f"{path} cannot be understood: {_problem(error)}", hint=hint) from None
        try:
            new = cls.model_validate(old.model_dump() | {k: v for k, v in given.items() if v not in (None, ())})
        except ValidationError as error:
            hint = "`fedplat server start --help` shows what can be given."
            raise HomeError(f"the server cannot be set up like that: {_problem(error)}", hint=hint) from None
        return new if new.names else new.model_copy(update={"names": _own_names()})

    def remember(self, home: ServerHome) -> None:
        """For the next start."""
        write_atomic(_path(home), self.model_dump_json(indent=2).encode())

    def database_url(self, home: ServerHome) -> str:
        """Where the SQL store is."""
        return self.database or f"sqlite:///{Path(home.db)}"

    @property
    def address(self) -> str:
        """`host:port` for silos."""
        return f"{self.names[0]}:{self.port}"


def _path(home: ServerHome) -> Path:
    return home.path / "server.json"


def _problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    return ": ".join([*map(str, problem["loc"]), problem["msg"]])


def _own_names() -> tuple[str, ...]:
    name = socket.gethostname()
    return tuple(dict.fromkeys([name, "localhost", "127.0.0.1"]))
