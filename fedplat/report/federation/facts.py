"""The report on the federation as a document."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fedplat.ledger import Statement
from fedplat.report import chapters
from fedplat.report.chapters import told
from fedplat.report.document import Chapter, Document, Row, Table, pairs
from fedplat.report.drawing import Figure
from fedplat.report.federation.material import FederatedRun
from fedplat.report.federation.model import FederationFile, FederationReport, SiloLine
from fedplat.report.pictures import MOST_BARS, trade_off
from fedplat.report.plots import bar, bar_plot
from fedplat.report.wording import UNITS, say

_DECLARED = "the server cannot see it; whoever signs relies on silos, software or people for it"


def document(file: FederationFile, data: str) -> Document:
    """The whole report; `data`: the file as canonical JSON."""
    report = file.report
    signed = "signed by the server's key" if file.signature else f"not signed: {file.unsigned_because}"
    return chapters.front(
        report.summary,
        title=f"Privacy report of the federation: {report.subject}",
        description=f"{report.product.description} Server {report.server}."
        f" Made at {report.made_at:%Y-%m-%d %H:%M} UTC, {signed.rstrip('.')}.",
        figures=_figures(report),
        chapters=_chapters(file),
        data=data,
    )


def _figures(report: FederationReport) -> Iterator[Figure]:
    loss = report.privacy_loss
    if loss.alone is not None:
        alone = [(_name(line, report), line.alone.epsilon) for line in loss.silos if line.alone is not None]
        yield _bars("Epsilon of this run alone, silo by silo", alone, loss.delta, "other")
    lifetime = [(_name(line, report), line.lifetime.epsilon) for line in loss.silos]
    yield _bars("Epsilon of all runs on the silo's patients", lifetime, loss.delta, "main")
    named = [("all together (worst silo)", loss.lifetime, "main")]
    if loss.alone is not None:
        named.append(("this run alone (worst silo)", loss.alone, "other"))
    yield trade_off(named)


def _bars(name: str, epsilons: list[tuple[str, float | None]], delta: float, style: str) -> Figure:
    """Of the largest where there are too many."""
    if len(epsilons) > MOST_BARS:
        name += f", the largest {MOST_BARS} of {len(epsilons)}"
        epsilons = sorted(epsilons, key=lambda one: math.inf if one[1] is None else one[1], reverse=True)[:MOST_BARS]
    return bar_plot(name, f"epsilon at delta {delta:g}", [bar(silo, value, style) for silo, value in epsilons])


def _name(line: SiloLine, report: FederationReport) -> str:
    is_only = sum(other.silo == line.silo for other in report.privacy_loss.silos) == 1
    return line.silo if is_only else f"{line.silo} {line.dataset}"


def _chapters(file: FederationFile) -> Iterator[Chapter]:
    report = file.report
    loss = report.privacy_loss
    yield Chapter("What is not protected", items=report.dp_flavor.unprotected_quantities)
    yield _silos(report)
    whom = f"{UNITS[loss.privacy_unit]} {loss.rule}"
    yield chapters.figures(loss.privacy_unit, whom, loss.alone, loss.lifetime)
    if report.run is not None:
        yield _run(report.run)
        yield _masking(report.run)
    yield chapters.assumptions(report.accounting.assumptions, _DECLARED)
    yield chapters.checks(
        report.accounting.cross_check,
        "The silos check theirs by PRV as well. Where they differ nobody signs.",
        loss.lifetime,
    )
    yield chapters.promise(report.dp_flavor, report.model, report.implementation, report.accounting)
    yield Chapter("Who sees what", tables=(pairs((actor.name, actor.sees) for actor in report.model.actors),))
    yield Chapter("Tested by attack", text=report.empirical.note)
    yield _evidence(report)
    signature = [("Report made at", f"{report.made_at:%Y-%m-%d %H:%M} UTC"), ("Server", report.server)]
    signature += chapters.signature_lines(file.signature, file.unsigned_because)
    governance = report.governance
    yield from chapters.ending(
        signature, "the server's signature, and those of the silos", governance.said, governance.to_be_filled_in
    )


def _silos(report: FederationReport) -> Chapter:
    of_run = ("Rounds", "Epsilon of the run") if report.run is not None else ()
    head = ("Silo", "Dataset", "For each", *of_run, "Of all runs", "Reserved", "Budget")
    rows = []
    for line in report.privacy_loss.silos:
        to_come = f"{sum(event.num_steps for event in line.may_still_spend)} steps" if line.may_still_spend else "-"
        after = (say(line.lifetime.epsilon), to_come, _budget(line, report.privacy_loss.delta))
        rows.append((line.silo, line.dataset, line.unit or "unknown", *_alone(line), *after))
    return Chapter(
        "Silo by silo",
        text=f"Epsilons at delta {report.privacy_loss.delta:g}, computed from what each silo has signed."
        f" {report.accounting.composition} Reserved: what runs might still spend when the silo last signed; what a run"
        " leaves is given back when it ends.",
        tables=(Table(head, tuple(rows)),),
    )


def _alone(line: SiloLine) -> Row:
    if line.alone is None:
        return ()
    return str(line.num_rounds), ("" if line.alone_is_known else "at most ") + say(line.alone.epsilon)


def _budget(line: SiloLine, delta: float) -> str:
    """With its own delta where that is not the one of the other figures: they cannot be compared then."""
    if line.budget is None or line.statement is None:
        return "none"
    own = Statement.model_validate_json(line.statement.statement).delta
    return f"{line.budget:g}" if own == delta else f"{line.budget:g} at delta {own:g}"


def _run(run: FederatedRun) -> Chapter:
    spec = run.spec
    facts = [
        ("Run", run.id),
        ("Study, task", f"{spec.study}, {spec.task}"),
        ("State", f"{run.state}. {run.reason}" if run.reason else run.state),
        ("Begun", f"{run.created_at:%Y-%m-%d %H:%M} UTC"),
        ("Ended", f"{run.finished_at:%Y-%m-%d %H:%M} UTC" if run.finished_at else "not yet"),
        ("Rounds", f"{run.num_rounds_committed} of {spec.num_rounds}"),
        ("Silos asked", str(run.num_silos_asked)),
        ("Privacy", _privacy(run)),
        ("Metrics", spec.metrics),
        ("Spec", run.spec_hash),
        ("Model (SHA-256)", run.model_hash or "none yet"),
    ]
    return Chapter("The run", tables=(pairs(facts),))


def _privacy(run: FederatedRun) -> str:
    how = chapters.mode_in_words(run.mode)
    if not run.is_private:
        return how
    return f"{how}, clip norm {run.spec.clip_norm:g}, {run.spec.expected_batch_size} in a step on average"


def _masking(run: FederatedRun) -> Chapter:
    facts = run.masking
    if facts is None:
        how = "noised as it is" if run.is_private else "without any noise"
        return Chapter("Secure aggregation", text=f"There was none: the server saw each silo's update, {how}.")
    confirmed = "nobody said" if facts.num_confirmed is None else str(facts.num_confirmed)
    rows = [
        ("Sums", str(facts.num_sums)),
        ("Silos in the smallest sum", str(facts.smallest_cohort)),
        (
            "May side with the server and learn no single update",
            f"{facts.colluders_tolerated} silos, in the worst step",
        ),
        ("Peers confirmed by phone, the fewest", confirmed),
    ]
    text = "The server saw sums of updates, each noised in its silo. The epsilons above do not rest on that."
    if not run.is_private:
        text = "The server saw sums of updates, and no single one; no update was noised."
    return Chapter("Secure aggregation", text=text, tables=(pairs(rows),))


def _evidence(report: FederationReport) -> Chapter:
    rows: list[Row] = []
    for line in report.privacy_loss.silos:
        at = f"{line.signed_at:%Y-%m-%d %H:%M}" if line.signed_at else "never"
        nothing = "nothing" if line.lifetime.epsilon is not None else "nothing: it had no noise, or nobody signed"
        rows.append((line.silo, at, line.fingerprint or "", told(line.lifetime.events) or nothing))
    return Chapter(
        "What the silos have signed",
        text="The last statement of each: when (UTC), by which key, and all that was ever charged. The JSON has the"
        " statements and their signatures, which fedplat report verify checks as well.",
        tables=(Table(("Silo", "At", "Key", "Charged in all"), tuple(rows)),),
    )
