"""`fedplat server`, `fedplat silo`, `fedplat run`: thin; each calls the room that knows."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fedplat_server.commands_backup import backup, restore

Command = TypeVar("Command", bound=Callable[..., Any])


def _common(command: Command) -> Command:
    """--home and --json, on everything that lists or shows."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    return _home(command)


def _home(command: Command) -> Command:
    return click.option("--home", help="Where the server keeps its state (default: $FEDPLAT_HOME or ~/.fedplat).")(
        command
    )


def _print(value: object, as_json: bool, text: Callable[[Any], str]) -> None:
    click.echo(jsonlib.dumps(value, indent=2, ensure_ascii=False) if as_json else text(value))


@click.group()
def server() -> None:
    """The aggregation server."""


@server.command()
@click.option("--host", help="Address to listen on (default 0.0.0.0).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on, the only one (default 8443).")
@click.option(
    "--name", "names", multiple=True, help="Host name or IP for the certificate; the first goes into invites."
)
@click.option("--database", help="SQL URL, e.g. postgresql://user:password@host/fedplat (default: SQLite in the home).")
@_home
def start(host: str | None, port: int | None, names: tuple[str, ...], database: str | None, home: str | None) -> None:
    """Start the server. The first start makes a CA, a certificate and the database; options are remembered."""
    from fedplat_server.console import run_server

    run_server(home, {"host": host, "port": port, "names": names, "database": database})


server.add_command(backup)
server.add_command(restore)


@click.group()
def silo() -> None:
    """Who may take part."""


@silo.command()
@click.argument("name")
@click.option(
    "--hours", type=click.FloatRange(0.01, 24 * 30), default=24, show_default=True, help="How long it is good."
)
@_common
def invite(name: str, hours: float, home: str | None, as_json: bool) -> None:
    """Print a one-time invite for a new silo. It shows once; hand it over on a private way."""
    _invite(name, hours, home, as_json, rotate=False)


@silo.command()
@click.argument("name")
@click.option(
    "--hours", type=click.FloatRange(0.01, 24 * 30), default=24, show_default=True, help="How long it is good."
)
@_common
def rotate(name: str, hours: float, home: str | None, as_json: bool) -> None:
    """Print an invite by which an enrolled silo gets a new key."""
    _invite(name, hours, home, as_json, rotate=True)


def _invite(name: str, hours: float, home: str | None, as_json: bool, *, rotate: bool) -> None:
    from fedplat_server.adminclient import connect

    body = {"silo": name, "rotate": rotate, "lifetime_s": round(hours * 3600)}
    with connect(home) as admin:
        _print(admin.post("/invites", body), as_json, lambda view: view["invite"])


@silo.command("list")
@_common
def list_silos(home: str | None, as_json: bool) -> None:
    """All silos, and whether they are connected."""
    from fedplat_server.adminclient import connect
    from fedplat_server.console import silos_text

    with connect(home) as admin:
        _print(admin.get("/silos"), as_json, silos_text)


@silo.command("show")
@click.argument("name")
@_common
def show_silo(name: str, home: str | None, as_json: bool) -> None:
    """One silo: key, presence, invites."""
    from fedplat_server.adminclient import connect
    from fedplat_server.console import silo_text

    with connect(home) as admin:
        _print(admin.get(f"/silos/{name}"), as_json, silo_text)


@silo.command()
@click.argument("name")
@_common
def revoke(name: str, home: str | None, as_json: bool) -> None:
    """Shut a silo out, at once."""
    from fedplat_server.adminclient import connect

    with connect(home) as admin:
        _print(admin.post(f"/silos/{name}/revoke"), as_json, lambda view: f"silo {name} is revoked")


@click.group()
def run() -> None:
    """Training runs."""


@run.command()
@click.option("--task", default="tabular", show_default=True, help="The task to write a spec for.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="A CSV to infer the schema from (default: fits the demo)."
)
@click.option("--target", help="The column to predict (default: guessed from its name).")
def init(task: str, data: Path | None, target: str | None) -> None:
    """Print a commented run spec: fedplat run init > study.toml"""
    from fedplat.spec.template import write_template

    click.echo(write_template(task, data, target=target), nl=False)


@run.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--watch", "then_watch", is_flag=True, help="Watch the run until it ends.")
@_common
def submit(spec: Path, then_watch: bool, home: str | None, as_json: bool) -> None:
    """Start a run from a spec file."""
    from fedplat_server.adminclient import connect
    from fedplat_server.console import submitted_text, watch_run
    from fedplat_server.submission import pack_submission

    with connect(home) as admin:
        view = admin.post_bytes("/runs", pack_submission(spec))
        if not then_watch:
            _print(view, as_json, submitted_text)
            return
    raise SystemExit(watch_run(home, view["id"], as_json=as_json))  # type: ignore[index]


@run.command("list")
@_common
def list_runs(home: str | None, as_json: bool) -> None:
    """All runs."""
    from fedplat_server.adminclient import connect
    from fedplat_server.console import runs_text

    with connect(home) as admin:
        _print(admin.get("/runs"), as_json, runs_text)


@run.command("show")
@click.argument("run_id", metavar="RUN")
@_common
def show_run(run_id: str, home: str | None, as_json: bool) -> None:
    """One run: rounds, figures, silos."""
    from fedplat_server.adminclient import connect
    from fedplat_server.console import run_text

    with connect(home) as admin:
        _print(admin.get(f"/runs/{run_id}"), as_json, run_text)


@run.command()
@click.argument("run_id", metavar="RUN")
@_common
def watch(run_id: str, home: str | None, as_json: bool) -> None:
    """Follow a run until it ends. Exit status 0 if it finished. --json: a snapshot a line."""
    from fedplat_server.console import watch_run

    raise SystemExit(watch_run(home, run_id, as_json=as_json))


@run.command()
@click.argument("run_id", metavar="RUN")
@_common
def stop(run_id: str, home: str | None, as_json: bool) -> None:
    """Stop a run for good; what it has committed stays."""
    from fedplat_server.adminclient import connect

    with connect(home) as admin:
        _print(admin.post(f"/runs/{run_id}/stop"), as_json, lambda view: f"run {view['id']} is {view['state']}")


@run.command()
@click.argument("run_id", metavar="RUN")
@_common
def pause(run_id: str, home: str | None, as_json: bool) -> None:
    """Pause a run; silos keep what they have of it, and `continue` goes on in the same round."""
    from fedplat_server.adminclient import connect

    with connect(home) as admin:
        _print(admin.post(f"/runs/{run_id}/pause"), as_json, lambda view: f"run {view['id']} is {view['state']}")


@run.command("continue")
@click.argument("run_id", metavar="RUN")
@_common
def continue_run(run_id: str, home: str | None, as_json: bool) -> None:
    """Go on with a paused run."""
    from fedplat_server.adminclient import connect

    with connect(home) as admin:
        _print(admin.post(f"/runs/{run_id}/continue"), as_json, lambda view: f"run {view['id']} goes on")


@run.command()
@click.argument("run_id", metavar="RUN")
@_common
def checkpoints(run_id: str, home: str | None, as_json: bool) -> None:
    """The checkpoints of a run, each verified."""
    from fedplat_server.adminclient import connect
    from fedplat_server.console import checkpoints_text

    with connect(home) as admin:
        _print(admin.get(f"/runs/{run_id}/checkpoints"), as_json, checkpoints_text)


@run.command()
@click.argument("run_id", metavar="RUN")
@click.option("--from-round", type=click.IntRange(0), help="Start from this round's checkpoint (default: the last).")
@_common
def resume(run_id: str, from_round: int | None, home: str | None, as_json: bool) -> None:
    """Begin a new run from a checkpoint of one that is over or paused; it names that one as its parent."""
    from fedplat_server.adminclient import connect
    from fedplat_server.console import submitted_text

    with connect(home) as admin:
        _print(admin.post(f"/runs/{run_id}/resume", {"from_round": from_round}), as_json, submitted_text)


@run.command()
@click.argument("run_id", metavar="RUN")
@click.option("--round", "number", type=click.IntRange(0), help="The model after this round (default: the last).")
@click.option(
    "--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder to write (default: ./RUN)."
)
@_common
def export(run_id: str, number: int | None, folder: Path | None, home: str | None, as_json: bool) -> None:
    """Write the model (safetensors), the spec, the preprocessing constants and the metrics of a run."""
    from fedplat_server.adminclient import connect
    from fedplat_server.export import export_run

    with connect(home) as admin:
        written = export_run(admin, run_id, folder, number)
    _print([str(path) for path in written], as_json, lambda paths: "\n".join(paths))
