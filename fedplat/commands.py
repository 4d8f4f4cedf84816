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


@click.command()
@click.option("--server", is_flag=True, help="The server of this machine  [whatever is here]")
@click.option("--silo", metavar="NAME", help="A silo of this machine  [whatever is here]")
@click.option("--spec", type=click.Path(path_type=Path), metavar="study.toml", help="Could a silo take part in this?")
@click.option("--data", multiple=True, metavar="NAME=PATH", help="With these data  [those that `join` was given]")
@click.option("--gpus", default="", metavar="0,1,...", help="Train on these GPUs, as `client join`.")
@click.option("--workers", type=click.IntRange(1, 4096), default=1, help="Or with so many workers on the CPU.")
@click.option("--home", metavar="DIR", help="Where fedplat keeps its state  [$FEDPLAT_HOME, ~/.fedplat]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(
    server: bool,
    silo: str | None,
    spec: Path | None,
    data: tuple[str, ...],
    gpus: str,
    workers: int,
    home: str | None,
    as_json: bool,
) -> int:
    """Check this machine: network, TLS, clock, disk, files, database, GPUs, and whether the data fit a run.

    A line a check: ok, warning, failed or skipped, and what to do. The exit status is 1 if one has failed. Nothing is
    changed, and nothing leaves the machine but a question to the server who it takes this silo for.
    """
    from fedplat.doctor.checks import Asked
    from fedplat.doctor.console import run_doctor
    from fedplat.home import fedplat_home

    return run_doctor(Asked(fedplat_home(home), server, silo, spec, data, gpus, workers), as_json=as_json)
