"""Commands that need neither side: they start the others as processes."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--keep", is_flag=True, help="Leave the data, the homes and the database for a look afterwards.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where they go (default: a temporary folder)."
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=10, show_default=True, help="Rounds of each run.")
@click.option(
    "--reports",
    type=click.Path(path_type=Path, file_okay=False),
    default="fedplat-demo-reports",
    show_default=True,
    help="The folder for a privacy report; it stays.",
)
def demo(keep: bool, folder: Path | None, rounds: int, reports: Path) -> None:
    """Four hospitals train one model on this machine, privately: a server and four silos, over TLS."""
    from fedplat.demo import run_demo

    run_demo(keep=keep, folder=folder, rounds=rounds, reports=reports)
