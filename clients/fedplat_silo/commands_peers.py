"""`fedplat client peers ...`: whose keys this silo knows, and who was confirmed by phone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from fedplat_silo.options import as_json as _as_json
from fedplat_silo.options import home_of, one_silo

if TYPE_CHECKING:
    from fedplat_silo.peers import Peer, Peers

_NOBODY = """\
no other silo is known yet: they are noted when a run with secure aggregation first names them
  To confirm one ahead: fedplat client peers pin NAME FINGERPRINT"""


@click.group()
def peers() -> None:
    """The other silos: whose keys are known here, and who was confirmed out of band."""


@peers.command("list")
@one_silo
@_as_json
def list_peers(silo: str | None, home: str | None, as_json: bool) -> None:
    """Every silo that this one has seen or pinned."""
    found = _peers(silo, home).entries()
    if as_json:
        click.echo(json.dumps([peer.model_dump(mode="json") for peer in found], indent=2))
        return
    for line in _describe(found) or [_NOBODY]:
        click.echo(line)


@peers.command()
@one_silo
@click.argument("name")
@click.argument("fingerprint", nargs=-1, required=True)
@_as_json
def pin(silo: str | None, home: str | None, name: str, fingerprint: tuple[str, ...], as_json: bool) -> None:
    """Confirm that this key is that silo's: its administrator reads it out, from `fedplat client fingerprint`."""
    known = _peers(silo, home)
    _refuse_oneself(silo, home, name)
    before = _entry(known, name)
    known.pin(name, "".join(fingerprint))
    after = _entry(known, name)
    if as_json:
        click.echo(after.model_dump_json(indent=2) if after else "null")
        return
    click.echo(_say_pinned(name, before, after))


@peers.command()
@one_silo
@click.argument("name")
@_as_json
def forget(silo: str | None, home: str | None, name: str, as_json: bool) -> None:
    """Take the next key under this name at first sight, for example after that silo has a new key."""
    _peers(silo, home).forget(name)
    if as_json:
        click.echo(json.dumps({"forgotten": name}))
        return
    click.echo(f"silo {name} is forgotten: the next key that the server shows under this name is believed")
    click.echo(f"  Better, compare it by phone first: fedplat client peers pin {name} FINGERPRINT")


def _peers(silo: str | None, home: str | None) -> Peers:
    from fedplat_silo.peers import Peers

    return Peers(home_of(silo, home).peers)


def _entry(known: Peers, name: str) -> Peer | None:
    return next((peer for peer in known.entries() if peer.name == name), None)


def _refuse_oneself(silo: str | None, home: str | None, name: str) -> None:
    if home_of(silo, home).name == name:
        raise click.UsageError(f"{name} is this silo itself. Pin it at the others.")


def _describe(found: list[Peer]) -> list[str]:
    from fedplat.identity import show_fingerprint

    lines = []
    for peer in found:
        seen = f"first seen {peer.first_seen:%Y-%m-%d %H:%M} UTC" if peer.first_seen else "not seen yet"
        lines += [f"{peer.name}  {'pinned' if peer.pinned else 'not confirmed'}, {seen}"]
        lines += [f"  {show_fingerprint(peer.fingerprint)}"]
    num_pinned = sum(peer.pinned for peer in found)
    if num_pinned < len(found):
        lines += [f"{num_pinned} of {len(found)} are confirmed. For the others, compare fingerprints by phone, then:"]
        lines += ["  fedplat client peers pin NAME FINGERPRINT"]
    return lines


def _say_pinned(name: str, before: Peer | None, after: Peer | None) -> str:
    if before is None or after is None:
        return f"silo {name} is pinned before it was seen here: any other key under this name will be refused"
    if before.fingerprint == after.fingerprint:
        return f"silo {name} is confirmed: it is the key that is known here"
    return (
        f"silo {name} is pinned with another key than the one that was known here, which is refused from now on\n"
        "  A run that goes on with the old key stops here until the server begins a new epoch with the new one."
    )
