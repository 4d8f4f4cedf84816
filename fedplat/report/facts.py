"""A silo's privacy report as a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedplat.ledger import Events
from fedplat.privacy.values import round_up
from fedplat.report.document import Chapter, Document, Row, Table, pairs
from fedplat.report.model import CheckedEpsilon, Kind, Loss, PrivacyReport, ReportFile, ReportSignature
from fedplat.report.pictures import pictures
from fedplat.report.wording import ATTENTION, say

_RATES = (0.001, 0.01, 0.05, 0.1)


def document(file: ReportFile, data: str) -> Document:
    """The whole report; `data`: the file as canonical JSON."""
    report = file.report
    signed = "signed by the silo's key" if file.signature else "not signed"
    headlines = tuple(line for line in report.summary if " right " in line)
    alarms = tuple(line for line in report.summary if line.startswith(ATTENTION))
    return Document(
        title=_title(report),
        description=f"{report.product.description} Made at {report.made_at:%Y-%m-%d %H:%M} UTC, {signed}.",
        headlines=headlines,
        lines=tuple(line for line in report.summary if line not in headlines and line not in alarms),
        alarms=alarms,
        figures=tuple(pictures(report)),
        chapters=tuple(_chapters(file)),
        data=data,
    )


def _title(report: PrivacyReport) -> str:
    what = "Privacy report before a run" if report.kind is Kind.PLAN else "Privacy report"
    return f"{what}: {report.product.name}, silo {report.silo}"


def _chapters(file: ReportFile) -> Iterator[Chapter]:
    """All after page one."""
    report = file.report
    yield Chapter("What is not protected", items=report.dp_flavor.unprotected_quantities)
    yield _figures(report)
    yield _assumptions(report)
    yield _lifetime(report)
    yield _runs(report)
    yield checks(
        report.accounting.cross_check, "Where Opacus is, it must be between PRV's bounds, too; else nobody signs."
    )
    yield _promise(report)
    yield Chapter("Who sees what", tables=(pairs((actor.name, actor.sees) for actor in report.model.actors),))
    yield Chapter("Tested by attack", text=report.empirical.note)
    yield _events(report)
    yield _governance(file)


def _figures(report: PrivacyReport) -> Chapter:
    loss = report.privacy_loss
    return Chapter(
        "What can be told about one patient" if loss.privacy_unit == "patient" else "What can be told about one record",
        text=f"{loss.privacy_unit_description} All figures are upper bounds, rounded up, for the best test there is.",
        tables=(loss_table(loss.alone, loss.lifetime),),
    )


def loss_table(alone: Loss | None, lifetime: Loss) -> Table:
    """All figures, of the run and of all together."""
    named = [("This run alone", _loss(alone))] if alone is not None else []
    named.append(("All together", _loss(lifetime)))
    head = ("", *(name for name, _ in named))
    return Table(head, tuple((label, *(cells[label] for _, cells in named)) for label in named[0][1]))


def _loss(loss: Loss) -> dict[str, str]:
    rates = {point.fpr: point.tpr for point in loss.trade_off}
    told = {
        f"Found, where {rate:.1%} of the others are falsely accused": f"at most {round_up(rates[rate], 3):.1%}"
        for rate in _RATES
    }
    return {
        "Right in 100 times": "no bound" if loss.epsilon is None else f"at most {loss.right_in_100}",
        "Membership advantage": say(loss.membership_advantage),
        f"Epsilon at delta {loss.delta:g}": say(loss.epsilon),
        "Gaussian mu that is no better": say(loss.gdp_mu),
    } | told


def _assumptions(report: PrivacyReport) -> Chapter:
    rows = [(one.status.value, one.statement, one.detail) for one in report.accounting.assumptions]
    return Chapter(
        "What the figures rest on",
        text="declared: the ledger cannot show it; whoever signs relies on the software, or on people, for it.",
        tables=(Table(("", "Assumption", ""), tuple(rows)),),
    )


def _lifetime(report: PrivacyReport) -> Chapter:
    found = report.accounting.lifetime
    plan = report.kind is Kind.PLAN
    rows = [
        ("Budget", "none" if found.budget is None else f"{found.budget:g}"),
        ("Before this plan" if plan else "Without this run", say(found.before)),
        ("After it" if plan else "All that was spent", say(found.after)),
        ("With all that open runs may still spend", say(found.committed)),
        ("Remaining", "no budget" if found.budget is None else _remaining(found.remaining)),
        ("Within the budget", {None: "no budget", True: "yes", False: "no"}[found.fits]),
    ]
    shown = rows if report.kind is not Kind.LIFETIME else [rows[0], *rows[2:]]
    return Chapter(
        "The budget for life",
        text=f"Epsilons at delta {found.delta:g}. {report.accounting.composition}",
        tables=(pairs(shown),),
    )


def _remaining(value: float | None) -> str:
    return "nothing" if value is None or value < 0 else f"{int(value * 1000) / 1000:.3f}"


def _runs(report: PrivacyReport) -> Chapter:
    head = ("Run", "Dataset", "State", "Privacy", "Releases", "Steps", "Epsilon alone", "Noise, clip, batch, metrics")
    rows = []
    for run in report.accounting.runs:
        spec = run.spec
        known = f"clip {spec.clip_norm:g}, batch {spec.expected_batch_size}, metrics {spec.metrics}" if spec else ""
        noise = ", ".join(f"noise {e.noise_multiplier:g}, rate {e.sampling_rate:.4g}" for e in run.charged)
        planned = ", ".join(f"noise {e.noise_multiplier:g}, rate {e.sampling_rate:.4g}" for e in run.may_still_spend)
        num_steps = sum(event.num_steps for event in run.charged)
        to_come = sum(event.num_steps for event in run.may_still_spend)
        cells = (
            run.run,
            run.dataset,
            run.state.value,
            f"{run.mode}, per {run.unit}",
            str(run.num_releases),
            f"{num_steps}" + f" (+ {to_come})" * bool(to_come),
            say(run.epsilon),
            "; ".join(filter(None, (noise or planned, known))),
        )
        rows.append(cells)
    return Chapter("Every run on these patients", tables=(Table(head, tuple(rows)),) if rows else (), text=_none(rows))


def _none(rows: Sequence[Row]) -> str:
    return "In brackets: steps that may still come." if rows else "There was none."


def checks(found: Sequence[CheckedEpsilon], more: str) -> Chapter:
    """What other accountants say; `more`: what becomes of that."""
    names = {"alone": "This run alone", "lifetime": "All together"}
    rows = tuple(
        (
            names[check.what],
            say(check.pld),
            say(check.rdp),
            "not checked here" if check.prv_lower is None else f"{check.prv_lower:.3f} to {check.prv_upper:.3f}",
            "; ".join(check.failures) or "they agree",
        )
        for check in found
    )
    return Chapter(
        "The same epsilon by other accountants",
        text=f"The report's epsilon (PLD) must be at most RDP's. {more}",
        tables=(Table(("", "PLD", "RDP", "PRV", ""), rows),),
    )


def _promise(report: PrivacyReport) -> Chapter:
    flavor, made = report.dp_flavor, report.implementation
    facts = [
        ("Promise", flavor.name),
        ("Neighbours", flavor.input_metric),
        ("Measure", flavor.output_measure),
        ("Data", flavor.data_domain),
        ("Trust", report.model.model_name),
        ("Mechanism", made.mechanisms),
        ("Randomness", made.randomness),
        ("Accountant", f"{report.accounting.accountant}, {report.accounting.accountant_version}"),
        ("Software", f"{made.software} {made.software_version}"),
    ]
    return Chapter("The promise in technical words", tables=(pairs(facts),))


def _events(report: PrivacyReport) -> Chapter:
    accounting = report.accounting
    rows = [
        (f"{one.at:%Y-%m-%d %H:%M}", one.run, str(one.round), one.attempt[:8], _told(one.events) or "without noise")
        for one in accounting.releases
    ]
    if accounting.lost_entries:
        rows.append(("", "lost entries", "", "", _told(accounting.lost_entries)))
    return Chapter(
        "Every release",
        text="What was charged, as it happened. From these lines anybody can compute the figures again (times in UTC)."
        if rows
        else "Nothing was released yet.",
        tables=(Table(("At", "Run", "Round", "Attempt", "Charged"), tuple(rows)),) if rows else (),
    )


def _told(events: Events) -> str:
    return "; ".join(
        f"{e.num_steps} steps, rate {e.sampling_rate:.6g}, noise multiplier {e.noise_multiplier:g}" for e in events
    )


def _governance(file: ReportFile) -> Chapter:
    book, signature = file.report.governance.ledger, file.signature
    facts = [("Report made at", f"{file.report.made_at:%Y-%m-%d %H:%M} UTC")]
    if book is not None:
        signed = "not yet" if book.countersigned is None else f"up to entry {book.countersigned}"
        facts += [("Ledger's head", f"entry {book.seq}, {book.head}"), ("Countersigned by the server", signed)]
    if file.report.product.spec_hash:
        facts.append(("Spec", file.report.product.spec_hash))
    facts += signature_lines(signature, file.unsigned_because)
    blank = [(line, "") for line in file.report.governance.to_be_filled_in]
    return Chapter(
        "Signature, and what people add",
        text="`fedplat report verify FILE` checks the signature over this report and the ledger's head.",
        tables=(pairs((*facts, *file.report.governance.said)), pairs(blank)),
    )


def signature_lines(signature: ReportSignature | None, unsigned_because: str) -> list[tuple[str, str]]:
    """Who signed, or why nobody did."""
    if signature is None:
        return [("Signature", f"none. {unsigned_because}")]
    return [("Signed by the key", signature.fingerprint), ("Signature", signature.signature)]
