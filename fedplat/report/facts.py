"""The report as headed tables and lists of text, which HTML and Markdown then set each in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fedplat.ledger import Events
from fedplat.privacy.values import round_up
from fedplat.report.model import Kind, Loss, PrivacyReport, ReportFile
from fedplat.report.wording import say

Row = tuple[str, ...]
_RATES = (0.001, 0.01, 0.05, 0.1)


@dataclass(frozen=True, slots=True)
class Table:
    """`head` empty: two columns, the first of which names the second."""

    head: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Chapter:
    """`items`: a list; comes after the text and before the tables."""

    title: str
    text: str = ""
    items: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


def title(report: PrivacyReport) -> str:
    """What it is, about what, of whom."""
    what = {Kind.LIFETIME: "Privacy report", Kind.RUN: "Privacy report", Kind.PLAN: "Privacy report before a run"}
    return f"{what[report.kind]}: {report.product.name}, silo {report.silo}"


def chapters(file: ReportFile) -> Iterator[Chapter]:
    """All after page one."""
    report = file.report
    yield Chapter("What is not protected", items=report.dp_flavor.unprotected_quantities)
    yield _figures(report)
    yield _assumptions(report)
    yield _lifetime(report)
    yield _runs(report)
    yield _checks(report)
    yield _promise(report)
    yield Chapter("Who sees what", tables=(_pairs((actor.name, actor.sees) for actor in report.model.actors),))
    yield Chapter("Tested by attack", text=report.empirical.note)
    yield _events(report)
    yield _governance(file)


def _figures(report: PrivacyReport) -> Chapter:
    loss = report.privacy_loss
    columns = [("This run alone", loss.alone)] * (loss.alone is not None) + [("All together", loss.lifetime)]
    named = [(name, _loss(found)) for name, found in columns if found is not None]
    head = ("", *(name for name, _ in named))
    rows = tuple((label, *(cells[label] for _, cells in named)) for label in named[0][1])
    return Chapter(
        "What can be told about one patient" if loss.privacy_unit == "patient" else "What can be told about one record",
        text=f"{loss.privacy_unit_description} All figures are upper bounds, rounded up, for the best test there is.",
        tables=(Table(head, rows),),
    )


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
        tables=(_pairs(shown),),
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


def _checks(report: PrivacyReport) -> Chapter:
    names = {"alone": "This run alone", "lifetime": "All together"}
    rows = tuple(
        (
            names[check.what],
            say(check.pld),
            say(check.rdp),
            "not installed" if check.prv_lower is None else f"{check.prv_lower:.3f} to {check.prv_upper:.3f}",
            "; ".join(check.failures) or "they agree",
        )
        for check in report.accounting.cross_check
    )
    return Chapter(
        "The same epsilon by other accountants",
        text="The report's epsilon (PLD) must be at most RDP's, and between PRV's bounds; else nobody signs.",
        tables=(Table(("", "PLD", "RDP", "PRV", ""), rows),),
    )


def _promise(report: PrivacyReport) -> Chapter:
    flavor, made = report.dp_flavor, report.implementation
    pairs = [
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
    return Chapter("The promise in technical words", tables=(_pairs(pairs),))


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
    pairs = [("Report made at", f"{file.report.made_at:%Y-%m-%d %H:%M} UTC")]
    if book is not None:
        signed = "not yet" if book.countersigned is None else f"up to entry {book.countersigned}"
        pairs += [("Ledger's head", f"entry {book.seq}, {book.head}"), ("Countersigned by the server", signed)]
    if file.report.product.spec_hash:
        pairs.append(("Spec", file.report.product.spec_hash))
    if signature is None:
        pairs.append(("Signature", f"none. {file.unsigned_because}"))
    else:
        pairs += [("Signed by the key", signature.fingerprint), ("Signature", signature.signature)]
    blank = [(line, "") for line in file.report.governance.to_be_filled_in]
    return Chapter(
        "Signature, and what people add",
        text="`fedplat report verify FILE` checks the signature over this report and the ledger's head.",
        tables=(_pairs(pairs), _pairs(blank)),
    )


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    return Table((), tuple(rows))
