"""`fedplat client budget ...`, and what else a privacy officer types: `subject`, `approve`, `runs pending`."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import click

from fedplat.errors import FedplatError
from fedplat_silo.options import as_json as _as_json
from fedplat_silo.options import home_of, one_silo

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from fedplat.home import SiloHome
    from fedplat.spec import RunSpec
    from fedplat_silo.approvals import Approval
    from fedplat_silo.ledger import Book
    from fedplat_silo.ledger.overview import Overview


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def budget() -> None:
    """What the runs may cost this silo's patients in all, and the ledger of what they did."""


@budget.command("set")
@one_silo
@click.option("--dataset", required=True, metavar="NAME", help="A dataset that `join --data` has named.")
@click.option("--epsilon", required=True, type=click.FloatRange(min=0, max=1e6), help="Of all runs together, for life.")
@click.option("--delta", required=True, type=click.FloatRange(0, 1, min_open=True, max_open=True), help="As 1e-5.")
@click.option("--patient", metavar="COLUMN", help="The column that names the patients  [as before; else none]")
@_as_json
def set_budget(
    silo: str | None, home: str | None, dataset: str, epsilon: float, delta: float, patient: str | None, as_json: bool
) -> None:
    """Allow runs to cost each patient of a dataset so much, and no more. Reads the whole dataset once."""
    from fedplat_silo.ledger import begin_book
    from fedplat_silo.ledger.overview import look_over

    place = home_of(silo, home)
    book = begin_book(place)
    others = _register(book, place, dataset, patient)
    unit = "patient" if book.look().datasets[dataset].patient_column else "record"
    book.set_budget(dataset, epsilon=epsilon, delta=delta, unit="patient" if unit == "patient" else "record")
    found = next(o for o in look_over(book.look()) if dataset in o.datasets)
    if as_json:
        click.echo(json.dumps(found.facts(), indent=2))
        return
    click.echo(f"dataset {dataset}: epsilon {epsilon:g} at delta {delta:g} for each {unit}, of all runs together")
    if others:
        click.echo(f"  It has patients in common with {', '.join(others)}: they share this budget.")
    if found.spent > epsilon:
        click.echo(f"  {_say(found.spent)} was spent already: nothing more will be released.")


@budget.command()
@one_silo
@_as_json
def show(silo: str | None, home: str | None, as_json: bool) -> None:
    """What was spent, what open runs may still spend, and by which runs."""
    from fedplat_silo.ledger import find_book
    from fedplat_silo.ledger.overview import look_over

    found = look_over(find_book(home_of(silo, home)).look())
    if as_json:
        click.echo(json.dumps([overview.facts() for overview in found], indent=2))
        return
    for line in [line for overview in found for line in _describe(overview)]:
        click.echo(line)


@budget.command()
@one_silo
@_as_json
@click.pass_context
def verify(context: click.Context, silo: str | None, home: str | None, as_json: bool) -> None:
    """Check the whole ledger: that no entry was changed, removed, exchanged or cut off."""
    from fedplat_silo.ledger import LedgerError, verify_book

    place = home_of(silo, home)
    try:
        verdict = verify_book(place, _server_key(place))
    except LedgerError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"whole": False, "problem": error.message}, indent=2))
        context.exit(1)
    if as_json:
        facts = {"entries": verdict.num_entries, "head": verdict.head, "countersigned": verdict.countersigned}
        click.echo(json.dumps({"whole": True} | facts, indent=2))
        return
    click.echo(f"the privacy ledger is whole: {verdict.num_entries} entries, the last is {verdict.head}")
    if verdict.countersigned:
        click.echo(f"  The server has countersigned up to entry {verdict.countersigned}.")


@budget.command()
@one_silo
@click.option("--whole-reservations", is_flag=True, help="Without the server's copy: charge open runs in full.")
@_as_json
def reconcile(silo: str | None, home: str | None, whole_reservations: bool, as_json: bool) -> None:
    """After an old copy was restored: charge what the server knows to be missing."""
    from fedplat_silo.ledger import Keeper, find_book
    from fedplat_silo.membership import load_membership

    place = home_of(silo, home)
    keeper = Keeper(find_book(place), load_membership(place))
    done = keeper.reconcile(whole_reservations=whole_reservations)
    if as_json:
        click.echo(json.dumps(done.model_dump(mode="json") if done else {"charges": [], "closed": []}, indent=2))
        return
    if done is None:
        click.echo("nothing is missing in the privacy ledger")
        return
    for charge in done.charges:
        click.echo(f"dataset {charge.dataset}: charged {sum(e.num_steps for e in charge.events)} steps that were lost")
    click.echo(f"the privacy ledger goes on; {len(done.closed)} open runs were closed and reserve again when they join")
    if whole_reservations:
        click.echo("  Runs of which this book never heard are not charged: keep that in mind, or lower the budget.")


@click.command()
@one_silo
@click.argument("patient")
@_as_json
def subject(silo: str | None, home: str | None, patient: str, as_json: bool) -> None:
    """In which runs the records of the patient with this ID took part."""
    from dataclasses import asdict

    from fedplat_silo.ledger import find_book, find_subject

    found = find_subject(find_book(home_of(silo, home)), patient)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, default=str))
        return
    click.echo(f"now in: {', '.join(found.datasets) or 'no dataset'}")
    for name in found.excluded_from:
        click.echo(f"  left out of {name} (exclude.csv)")
    for part in found.runs:
        click.echo(
            f"run {part.run}, {part.joined_at:%Y-%m-%d}: dataset {part.dataset}, privacy {part.mode},"
            f" {part.num_releases} releases"
        )
    for name in found.not_searched:
        click.echo(f"dataset {name} has no patient column, so nobody can be found there by id")


@click.command()
@one_silo
@click.argument("run")
@click.option("--refuse", is_flag=True, help="This run shall not take part.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--report", type=_FILE, metavar="FILE", help="Where the whole report on its plan goes (.html, .pdf ...)")
def approve(silo: str | None, home: str | None, run: str, refuse: bool, yes: bool, report: Path | None) -> None:
    """Agree that a run takes part, after a look at what it plans (policy: approval = "manual")."""
    from fedplat_silo.approvals import decide, find

    place = home_of(silo, home)
    found = find(place, run)
    click.echo("\n".join(_plan(found)))
    if found.spec.privacy.is_private and not (yes and report is None):
        _show_report(place, found.spec, report)
    if not yes:
        click.confirm("Refuse it?" if refuse else "Let it take part?", abort=True)
    decide(place, run, "refused" if refuse else "approved")
    click.echo(f"run {run} is {'refused' if refuse else 'approved: it joins when the server asks again'}")


@click.group()
def runs() -> None:
    """Runs that wait for an approval here."""


@runs.command("pending")
@one_silo
@_as_json
def runs_pending(silo: str | None, home: str | None, as_json: bool) -> None:
    """Runs that nobody here has decided about yet."""
    from fedplat_silo.approvals import pending

    found = pending(home_of(silo, home))
    if as_json:
        click.echo(json.dumps([approval.model_dump(mode="json") for approval in found], indent=2))
        return
    for approval in found:
        click.echo(f"{approval.run}  {approval.spec.name}, asked {approval.asked_at:%Y-%m-%d %H:%M} UTC")
    click.echo("fedplat client approve RUN shows a run's plan and asks" if found else "no run waits")


def _register(book: Book, place: SiloHome, dataset: str, patient: str | None) -> tuple[str, ...]:
    """The other datasets that share patients with this one."""
    from fedplat_silo.datasets import path_of
    from fedplat_silo.ledger import call_the_roll

    path = path_of(place, dataset)
    known = book.look().datasets.get(dataset)
    column = patient or (known.patient_column if known else None)
    return book.register(dataset, call_the_roll(path, dataset, column, book.key)).shares_with


def _say(epsilon: float) -> str:
    from fedplat.privacy.values import round_up

    return f"{round_up(epsilon, 3):.3f}"


def _describe(found: Overview) -> list[str]:
    budget = "no budget" if found.budget is None else f"budget epsilon {found.budget:g} for each {found.unit}"
    lines = [
        f"{', '.join(found.datasets) or 'unknown patients'}: {budget}, at delta {found.delta:g}",
        f"  spent {_say(found.spent)}; {_say(found.committed)} with all that open runs may still spend",
    ]
    if found.num_lost_steps:
        lines.append(f"  of that, {found.num_lost_steps} steps for entries that were lost and reconciled")
    for run in found.runs:
        state = "open" if run.is_open else "closed"
        lines.append(
            f"  run {run.run} ({run.dataset}, {state}): {run.num_releases} releases, epsilon {_say(run.spent)}"
        )
    return lines


def _plan(approval: Approval) -> list[str]:
    spec, privacy = approval.spec, approval.spec.privacy
    lines = [
        f"run {approval.run}: {spec.name}, spec {approval.spec_hash}",
        f"  task {spec.task.name} on dataset {spec.data.name}, {spec.rounds.count} rounds, {spec.strategy.name}",
    ]
    if not privacy.is_private:
        return [*lines, "  no differential privacy: what leaves can tell something about single patients"]
    cost = f"epsilon {privacy.epsilon:g}" if privacy.epsilon is not None else f"noise {privacy.noise_multiplier:g}"
    told = f"{privacy.metrics}" if (noise := privacy.metrics_noise_multiplier) is None else f"with noise {noise:g}"
    return [*lines, f"  privacy {privacy.mode}: {cost} at delta {privacy.delta:g}, metrics {told}"]


def _show_report(place: SiloHome, spec: RunSpec, target: Path | None) -> None:
    """Page one of the report on the plan; all of it in a file, if there is one."""
    from fedplat.commands_report import FORMATS, format_of, put
    from fedplat.report.rendering import written
    from fedplat_silo.planning import report_of_plan

    try:
        file = report_of_plan(place, spec)
    except FedplatError as error:
        click.echo(f"  There is no report on it: {error.message}\n  {error.hint}".rstrip())
        return
    for line in file.report.summary:
        click.echo(fill(line, 100, initial_indent="  ", subsequent_indent="    "))
    if target is None:
        click.echo("  --report plan.html writes the whole report.")
    else:
        put(written(file, format_of(None, target, FORMATS)), target)


def _server_key(place: SiloHome) -> ec.EllipticCurvePublicKey | None:
    """The key of the server whose signatures are in the book; None where the silo is not enrolled any more."""
    from fedplat.identity import load_public
    from fedplat_silo.membership import load_place

    found = load_place(place)
    return load_public(found.server_key) if found else None


COMMANDS: tuple[click.Command, ...] = (budget, subject, approve, runs)
