"""`fedplat report run`."""

from __future__ import annotations

from pathlib import Path

import click

from fedplat.commands_report import format_of, put

_FORMATS = ("html", "pdf", "md", "json", "csv")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--home", help="Where the server keeps its state (default: $FEDPLAT_HOME or ~/.fedplat).")
@click.option("--format", "form", type=click.Choice(_FORMATS), help="[as --output ends, else md]")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="[the screen]")
def run(run_id: str, home: str | None, form: str | None, output: Path | None) -> None:
    """At the server: how a run went. Training curves, where the time went, who took part, the spec."""
    chosen = format_of(form, output, _FORMATS)
    from fedplat_server.adminclient import connect
    from fedplat_server.reports.rundocument import run_report

    with connect(home) as admin:
        view = admin.view(f"/runs/{run_id}")
    put(run_report(view, chosen), output)
