"""`fedplat report`: documents for people who decide. Either side tells what it knows (`fedplat.report.sources`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fedplat.report.signing import Verdict

FORMATS = ("html", "pdf", "md", "json", "csv", "opendp")
_FILE = click.Path(path_type=Path, dir_okay=False)
_HOME = click.option("--home", metavar="DIR", help="Where fedplat keeps its state  [$FEDPLAT_HOME, ~/.fedplat]")


@click.group()
def report() -> None:
    """Reports: what the data were used for, and what that can tell about one patient."""


@report.command()
@_HOME
@click.option(
    "--silo", metavar="NAME", help="What this silo's own book says; without its home: what it told the server."
)
@click.option("--dataset", metavar="NAME", help="All runs on this dataset's patients.")
@click.option("--run", metavar="ID", help="One run, beside all others on the same patients.")
@click.option("--plan", type=_FILE, metavar="study.toml", help="At a silo: a run before it begins; needs --units.")
@click.option("--units", type=click.IntRange(1), metavar="N", help="How many patients (or records) a plan trains on.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="[as --output ends, else md]")
@click.option("--output", type=_FILE, metavar="FILE", help="Where it goes  [the screen]")
def privacy(
    home: str | None,
    silo: str | None,
    dataset: str | None,
    run: str | None,
    plan: Path | None,
    units: int | None,
    form: str | None,
    output: Path | None,
) -> None:
    """What can be told about one patient, what it rests on, and what is left of the budget. Signed.

    At the server: of the whole federation, from what the silos have signed. In a hospital: from the silo's own book,
    offline.
    """
    if sum(one is not None for one in (dataset, run, plan)) > 1:
        raise click.UsageError("Give one of --dataset, --run and --plan.")
    if (plan is None) != (units is None):
        raise click.UsageError("--plan and --units go together: the noise depends on how many patients there are.")
    chosen = format_of(form, output, FORMATS)
    from fedplat.home import fedplat_home
    from fedplat.report.rendering import written
    from fedplat.report.signing import signer
    from fedplat.report.sources import Question, answer

    file = answer(Question(fedplat_home(home), silo=silo, run=run, dataset=dataset, plan=plan, num_units=units))
    signed = f"signed by {signer(file.report)}" if file.signature else f"not signed. {file.unsigned_because}"
    put(written(file, chosen), output, signed)


@report.command()
@_HOME
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--fingerprint", metavar="FP", help="Of the silo's key, or the server's, as they read it out.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def verify(home: str | None, file: Path, fingerprint: str | None, as_json: bool) -> None:
    """Check that a report (JSON or HTML) is as it was signed, by a silo or the server; --fingerprint says which key."""
    from fedplat.home import fedplat_home
    from fedplat.identity import parse_fingerprint
    from fedplat.report.rendering import data_of
    from fedplat.report.signing import read_report, verify_report
    from fedplat.report.sources import known_key

    text = _text(file)
    data = data_of(text) if text.startswith("<!DOCTYPE html>") else text
    wanted = parse_fingerprint(fingerprint) if fingerprint else known_key(fedplat_home(home), read_report(data).report)
    _tell(verify_report(data, wanted), as_json)


def _tell(verdict: Verdict, as_json: bool) -> None:
    from fedplat.identity import show_fingerprint
    from fedplat.report.signing import how_to_know, signer

    found = verdict.file.report
    who = signer(found)
    if as_json:
        facts = {"signer": who, "made_at": found.made_at.isoformat(), "valid": True}
        key = {"fingerprint": verdict.fingerprint, "key_is_known": verdict.is_known}
        click.echo(json.dumps(facts | key, indent=2))
        return
    click.echo(f"the report is as it was signed, on {found.made_at:%Y-%m-%d %H:%M} UTC, for {who}")
    if not verdict.is_known:
        click.echo(f"  Whose key it was is NOT checked. {how_to_know(found)} Here it is:")
        click.echo(f"  {show_fingerprint(verdict.fingerprint)}")


def format_of(form: str | None, output: Path | None, formats: tuple[str, ...]) -> str:
    """What was asked for, else as the file's name ends, else Markdown. Raises UsageError for a PDF on the screen."""
    suffix = output.suffix[1:] if output else ""
    chosen = form or (suffix if suffix in formats else "md")
    if chosen == "pdf" and output is None:
        raise click.UsageError("A PDF needs a file: --output report.pdf")
    return chosen


def put(content: bytes, output: Path | None, note: str = "") -> None:
    """To the screen, or into a file that only this user can read; says where, and the `note`. Raises NotFoundError."""
    from fedplat.durable import write_atomic
    from fedplat.errors import NotFoundError

    if output is None:
        click.echo(content.decode(), nl=False)
        return
    try:
        write_atomic(output.absolute(), content)
    except OSError as error:
        hint = "Choose a file in a folder that exists and that you can write to."
        raise NotFoundError(f"{output} cannot be written: {error.strerror}", hint=hint) from None
    click.echo(f"{output}: {note}" if note else str(output))


def _text(file: Path) -> str:
    from fedplat.errors import WireError

    hint = "Give the HTML or JSON of the same report."
    try:
        content = file.read_bytes()
        if content.startswith(b"%PDF"):
            raise WireError(f"{file} is a PDF, which is for reading and cannot be verified", hint=hint)
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise WireError(f"{file} cannot be read: {why}", hint=hint) from None
