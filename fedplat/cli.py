"""The root command. The sides' commands come by entry point; nothing heavy is imported until one of them runs."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import entry_points
from typing import NoReturn

import click

from fedplat import __version__
from fedplat.errors import FedplatError

_INTERRUPTED = 130
_log = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fedplat")
def root() -> None:
    """Federated training across institutions that may not share data.

    \b
    On the server:  fedplat server start; fedplat silo invite NAME; fedplat run submit study.toml
    In a hospital:  fedplat client join --silo NAME --invite LINE --data NAME=PATH
    To look first:  fedplat demo
    If it fails:    fedplat doctor
    """


def load_commands() -> click.Group:
    """The root command with every installed side's groups; an entry point `group.name` is a command in that group."""
    from fedplat.commands import demo, doctor

    root.add_command(demo)
    root.add_command(doctor)
    for entry in sorted(entry_points(group="fedplat.commands"), key=lambda e: e.name):
        group, _, name = entry.name.rpartition(".")
        place = root.commands[group] if group else root
        assert isinstance(place, click.Group)
        place.add_command(entry.load(), name)
    return root


def main() -> NoReturn:
    """The one boundary where errors become text for a person: no traceback reaches a user."""
    try:
        status = load_commands().main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FedplatError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if os.environ.get("FEDPLAT_DEBUG"):
            raise
        _explain_unforeseen(error)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _explain_unforeseen(error: Exception) -> None:
    """Its type alone: the text of an error that nobody foresaw may hold a patient's value."""
    has_log = bool(logging.getLogger().handlers)
    if has_log:
        _log.error("unforeseen", exc_info=error)
    click.echo(f"error: something unforeseen failed ({type(error).__name__})", err=True)
    where = "the log has the detail" if has_log else "set FEDPLAT_DEBUG=1 and try again to see where"
    click.echo(f"  {where}; this is a bug in fedplat, or in a task", err=True)
