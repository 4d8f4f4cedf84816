"""`fedplat server backup` and `fedplat server restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fedplat_server.backup import BackupReport, RestoreReport

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--home", help="The server's home (default: $FEDPLAT_HOME or ~/.fedplat).")
def backup(folder: Path, home: str | None) -> None:
    """Copy the server, running or not, into DIR, a new or empty folder. It holds the server's secrets."""
    from fedplat.home import ServerHome, fedplat_home
    from fedplat_server.backup import backup_server

    report = backup_server(ServerHome(fedplat_home(home)), folder.absolute())
    click.echo(backup_text(report))
    for problem in report.problems:
        click.echo(f"warning: {problem}", err=True)


@click.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--home", help="A new home for the server (default: $FEDPLAT_HOME or ~/.fedplat).")
@click.option("--database", help="SQL URL of an empty database (default: SQLite in the home).")
def restore(folder: Path, home: str | None, database: str | None) -> None:
    """Make the server of the backup in DIR anew, in an empty home. Runs that had not ended are closed."""
    from fedplat.home import ServerHome, fedplat_home
    from fedplat_server.backup import restore_server

    report = restore_server(folder.absolute(), ServerHome(fedplat_home(home)), database)
    click.echo(restore_text(report))


def backup_text(report: BackupReport) -> str:
    """What was written, and that it is secret."""
    manifest = report.manifest
    return "\n".join(
        (
            f"{report.folder}: {len(manifest.files)} files, {manifest.size_bytes / 1e6:.1f} MB, {report.num_runs} runs",
            f"  moment     {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC",
            f"  event log  {manifest.last_event} events, up to {manifest.last_hash}",
            "It holds the server's keys in the clear: keep it where you would keep a password.",
        )
    )


def restore_text(report: RestoreReport) -> str:
    """What was restored, and what a person has to see to."""
    lines = [f"restored the server of {report.made_at:%Y-%m-%d %H:%M:%S} UTC into {report.home.path}"]
    if report.closed_runs:
        lines.append(f"  closed {', '.join(report.closed_runs)}: go on with fedplat run resume RUN")
    if report.num_cancelled_invites:
        lines.append(f"  cancelled {report.num_cancelled_invites} open invites, which may have been used since")
    lines += [
        "Silos and keys are as they were then: see fedplat silo list, and revoke again whom you have revoked since.",
        "Never start the old server again: both would be the same one to the silos.",
    ]
    return "\n".join(lines)
