"""Names that travel: they end up in paths, URLs, certificates and signatures, so their letters are few."""

from __future__ import annotations

import re

from fedplat.errors import WireError

_SILO = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_RUN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[1-9][0-9]{0,4})")


def check_silo_name(name: str) -> str:
    """Returns the name. Raises WireError unless it is 1-63 of `a-z 0-9 -`, not starting with `-`."""
    if not _SILO.fullmatch(name):
        raise WireError(
            f"{name[:80]!r} cannot be the name of a silo",
            hint="Use lower-case letters, digits and '-', at most 63, for example hospital-a.",
        )
    return name


def check_run_id(run: str) -> str:
    """Returns the id. Raises WireError unless it is safe as the name of a folder."""
    if not _RUN.fullmatch(run):
        raise WireError(f"{run[:80]!r} cannot be the id of a run", hint="`fedplat run list` shows the ids.")
    return run


def check_address(address: str) -> str:
    """Returns the address. Raises WireError unless it is `host:port`, `1.2.3.4:port` or `[v6]:port`."""
    match = _ADDRESS.fullmatch(address)
    if not match or int(match["port"]) > 65535:
        raise WireError(
            f"{address[:80]!r} is not the address of a server",
            hint="Write host:port, for example fed.example.org:8443.",
        )
    return address
