"""`fedplat report ...`: documents for people who decide, from what this silo knows itself; works offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedplat_silo.options import as_json as _as_json
from fedplat_silo.options import at_home, home_of, one_silo

if TYPE_CHECKING:
    from fedplat.home import SiloHome
    from fedplat.report import Material, PrivacyReport, ReportFile

_FORMATS = ("html", "json", "md", "csv")
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def report() -> None:
    """Reports: what the data were used for, and what that can tell about one patient."""


@report.command()
@one_silo
@click.option("--dataset", metavar="NAME", help="All runs on this dataset's patients  [the only one in the ledger]")
@click.option("--run", metavar="ID", help="One run, beside all others on the same patients.")
@click.option("--plan", type=_FILE, metavar="study.toml", help="A run before it begins; needs --units.")
@click.option("--units", type=click.IntRange(1), metavar="N", help="How many patients (or records) a plan trains on.")
@click.option("--format", "form", type=click.Choice(_FORMATS), help="[as --output ends, else md]")
@click.option("--output", type=_FILE, metavar="FILE", help="Where it goes  [the screen]")
def privacy(
    silo: str | None,
    home: str | None,
    dataset: str | None,
    run: str | None,
    plan: Path | None,
    units: int | None,
    form: str | None,
    output: Path | None,
) -> None:
    """What can be told about one patient, what it rests on, and what is left of the budget. Signed by this silo."""
    if sum(one is not None for one in (dataset, run, plan)) > 1:
        raise click.UsageError("Give one of --dataset, --run and --plan.")
    if (plan is None) != (units is None):
        raise click.UsageError("--plan and --units go together: the noise depends on how many patients there are.")
    from fedplat.durable import write_atomic
    from fedplat.report import make_report, render

    place = home_of(silo, home)
    file = _signed(place, make_report(_material(place, dataset, run, plan, units)))
    suffix = output.suffix[1:] if output else ""
    text = render(file, form or (suffix if suffix in _FORMATS else "md"))
    if output is None:
        click.echo(text, nl=False)
        return
    write_atomic(output.absolute(), text.encode())
    click.echo(f"{output}: {'signed by this silo' if file.signature else f'not signed. {file.unsigned_because}'}")


@report.command()
@at_home
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--fingerprint", metavar="FP", help="Of the silo's key, as the silo reads it out.")
@_as_json
def verify(home: str | None, file: Path, fingerprint: str | None, as_json: bool) -> None:
    """Check that a report (JSON or HTML) is as a silo has signed it; --fingerprint says by which key."""
    from fedplat.identity import parse_fingerprint, show_fingerprint
    from fedplat.report import verify_report
    from fedplat.report.html import data_of

    text = _text(file)
    data = data_of(text) if text.startswith("<!DOCTYPE html>") else text
    wanted = parse_fingerprint(fingerprint) if fingerprint else _own_key(home, data)
    verdict = verify_report(data, wanted)
    found = verdict.file.report
    if as_json:
        facts = {"silo": found.silo, "kind": found.kind, "made_at": found.made_at.isoformat()}
        key = {"valid": True, "fingerprint": verdict.fingerprint, "key_is_known": verdict.is_known}
        click.echo(json.dumps(facts | key, indent=2))
        return
    click.echo(f"the report is as it was signed, on {found.made_at:%Y-%m-%d %H:%M} UTC, for silo {found.silo}")
    if not verdict.is_known:
        click.echo("  Whose key it was is NOT checked. Let the silo read out its fingerprint by phone, and compare:")
        click.echo(f"  {show_fingerprint(verdict.fingerprint)}")


def _material(place: SiloHome, dataset: str | None, run: str | None, plan: Path | None, units: int | None) -> Material:
    from fedplat.spec import load_spec
    from fedplat_silo import reporting

    if plan is not None and units is not None:
        return reporting.of_plan(place, load_spec(plan), units)
    return reporting.of_run(place, run) if run is not None else reporting.of_dataset(place, dataset)


def _signed(place: SiloHome, made: PrivacyReport) -> ReportFile:
    from fedplat.errors import NotFoundError
    from fedplat.report import sign_report, unsigned_report
    from fedplat_silo.membership import load_membership

    try:
        return sign_report(load_membership(place).key, made)
    except NotFoundError:
        return unsigned_report(made, f"Silo {place.name} is not enrolled, so it has no key to sign with.")


def _own_key(home: str | None, data: str) -> str | None:
    """The fingerprint of the silo's key, where it is a silo of this machine; else None."""
    from fedplat.home import SiloHome, fedplat_home
    from fedplat.report.signing import read_report
    from fedplat_silo.membership import load_place

    found = load_place(SiloHome(fedplat_home(home), read_report(data).report.silo))
    return found.key_fingerprint if found else None


def _text(file: Path) -> str:
    from fedplat.errors import WireError

    try:
        with file.open(encoding="utf-8", newline="") as opened:
            return opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise WireError(f"{file} cannot be read: {type(error).__name__}", hint="Give the JSON or HTML file.") from None
