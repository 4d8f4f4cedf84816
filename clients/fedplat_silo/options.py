"""Options that the client's commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fedplat.home import SiloHome

Command = TypeVar("Command", bound=Callable[..., Any])

at_home = click.option("--home", metavar="DIR", help="Where fedplat keeps its state  [$FEDPLAT_HOME, ~/.fedplat]")
as_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


def one_silo(command: Command) -> Command:
    """--silo and --home, which every command of one silo has."""
    silo = click.option("--silo", metavar="NAME", help="Which silo  [the only one in the home]")
    return silo(at_home(command))


def home_of(silo: str | None, home: str | None) -> SiloHome:
    """The home that these options mean. Raises NotFoundError."""
    from fedplat.home import fedplat_home
    from fedplat_silo.status import silo_home

    return silo_home(fedplat_home(home), silo)


def parse_gpus(text: str | None) -> tuple[int, ...]:
    """0,1,... as numbers. Raises click.BadParameter."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isascii() and part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise click.BadParameter("write numbers with commas, for example 0,1", param_hint="--gpus")
    return tuple(int(part) for part in parts)
