"""`fedplat client ...`: what an administrator of a silo types. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedplat_silo.commands_audit import audit
from fedplat_silo.commands_budget import COMMANDS as BUDGET_COMMANDS
from fedplat_silo.commands_peers import peers
from fedplat_silo.options import as_json as _as_json
from fedplat_silo.options import at_home as _at_home
from fedplat_silo.options import home_of as _home
from fedplat_silo.options import one_silo as _options
from fedplat_silo.options import parse_gpus

if TYPE_CHECKING:
    from fedplat_silo.status import Status


@click.group()
def client() -> None:
    """The silo: take part in a federation with the data of this site."""


for command in (audit, peers, *BUDGET_COMMANDS):
    client.add_command(command)


@client.command()
@_options
@click.option("--invite", metavar="LINE|@FILE|-", help="The invite; needed the first time only.")
@click.option("--data", "data", multiple=True, metavar="NAME=PATH", help="A dataset; remembered.")
@click.option("--server", metavar="HOST:PORT", help="Another address than the invite's.")
@click.option("--gpus", metavar="0,1,...", help="Train on these GPUs, one worker each.")
@click.option("--workers", type=click.IntRange(1, 4096), default=1, help="Or on the CPU, with this many workers.")
@click.option("--verbose", is_flag=True, help="Say everything, not only what matters.")
def join(
    silo: str | None,
    home: str | None,
    invite: str | None,
    data: tuple[str, ...],
    server: str | None,
    gpus: str | None,
    workers: int,
    verbose: bool,
) -> None:
    """Connect this silo and train when runs ask for it, until Ctrl-C."""
    from fedplat.home import fedplat_home
    from fedplat_silo.app import JoinOptions
    from fedplat_silo.app import join as join_federation

    root, devices = fedplat_home(home), parse_gpus(gpus)
    join_federation(JoinOptions(root, silo, invite, server, data, workers, devices, verbose))


@client.command()
@_options
@_as_json
def status(silo: str | None, home: str | None, as_json: bool) -> None:
    """What the silo's process is doing now."""
    from fedplat_silo.status import is_paused, read_status

    place = _home(silo, home)
    found, paused = read_status(place), is_paused(place)
    if as_json:
        facts = found.model_dump(mode="json") if found else {"silo": place.name}
        click.echo(json.dumps({"running": found is not None, "paused": paused} | facts, indent=2))
        return
    for line in _describe(place.name, found, paused):
        click.echo(line)


@client.command()
@_options
@_as_json
def policy(silo: str | None, home: str | None, as_json: bool) -> None:
    """What this silo allows; the file to edit is named."""
    from fedplat_silo.policy import load_policy

    place = _home(silo, home)
    rules = load_policy(place.policy)
    if as_json:
        click.echo(rules.model_dump_json(indent=2))
        return
    click.echo(f"{place.policy}")
    click.echo(place.policy.read_text(encoding="utf-8"), nl=False)


@client.command()
@_options
@_as_json
def fingerprint(silo: str | None, home: str | None, as_json: bool) -> None:
    """The fingerprint of this silo's key, to be compared by phone."""
    from fedplat.identity import show_fingerprint
    from fedplat_silo.membership import load_membership

    member = load_membership(_home(silo, home))
    place = member.place
    if as_json:
        facts = {"name": member.silo, "silo": place.key_fingerprint, "server_ca": place.ca_fingerprint}
        click.echo(json.dumps(facts, indent=2))
        return
    mine = show_fingerprint(place.key_fingerprint)
    click.echo(f"this silo:    {mine}")
    click.echo(f"server's CA:  {show_fingerprint(place.ca_fingerprint)}")
    click.echo("Read it out to the others by phone. Each of them then confirms this silo with:")
    click.echo(f"  fedplat client peers pin {member.silo} {mine}")


@client.command()
@_options
@click.option("--off", is_flag=True, help="Go on.")
def pause(silo: str | None, home: str | None, off: bool) -> None:
    """Take part in nothing new; a round under way is finished."""
    from fedplat_silo.status import set_paused

    place = _home(silo, home)
    set_paused(place, not off)
    click.echo(f"silo {place.name} {'takes part again' if off else 'is paused; go on with --off'}")


@client.command()
@_options
@click.confirmation_option(prompt="Leave the federation? Coming back needs a new invite.")
def leave(silo: str | None, home: str | None) -> None:
    """Leave the federation: the server forgets this silo, and its key is removed here."""
    from fedplat_silo.leaving import leave_federation

    place = _home(silo, home)
    leave_federation(place)
    click.echo(f"silo {place.name} has left; its log and its policy are still in {place.path}")


@client.command("train-alone")
@_at_home
@click.option("--spec", required=True, type=click.Path(path_type=Path), help="The run spec, study.toml.")
@click.option("--data", required=True, metavar="NAME=PATH[,PATH...]", help="The spec's dataset at one or more sites.")
@click.option("--pooled", is_flag=True, help="At last, also with all the data together.")
@_as_json
def train_alone(home: str | None, spec: Path, data: str, pooled: bool, as_json: bool) -> None:
    """Train each dataset alone, as the spec says: what one gets without the federation. Any number of sites' data
    may be given; each model is measured on the test records of all of them."""
    from fedplat_silo.comparison import compare, show_outcomes

    outcomes = compare(home, spec, data, pooled=pooled)
    click.echo("\n".join(show_outcomes(outcomes, as_json=as_json)))


def _describe(name: str, status: Status | None, paused: bool) -> list[str]:
    lines = [f"silo {name} is paused: `fedplat client pause --off` goes on"] if paused else []
    if status is None:
        return [*lines, f"silo {name} is not running: start it with `fedplat client join --silo {name}`"]
    where = "connected to" if status.connected else "waiting for"
    lines.append(f"silo {name} is {where} the server at {status.server}, {_ago(status.since)}")
    lines += [f"run {p.run}: round {p.round}, {p.phase} {p.share:.0%}" for p in status.runs]
    return lines if status.runs else [*lines, "no run at the moment"]


def _ago(since: float) -> str:
    seconds = max(0, round(time.time() - since))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"for {seconds // size} {unit}"
    return f"for {seconds} s"
