"""A silo's privacy report as a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedplat.report import audits, chapters
from fedplat.report.chapters import told
from fedplat.report.document import Chapter, Document, Row, Table, pairs
from fedplat.report.model import Kind, PrivacyReport, ReportFile
from fedplat.report.pictures import pictures
from fedplat.report.wording import say

_CHECKED = "Where the library Opacus is installed, it must be between PRV's bounds, too; else nobody signs."
_DECLARED = "the ledger cannot show it; whoever signs relies on the software, or on people, for it"


def document(file: ReportFile, data: str) -> Document:
    """The whole report; `data`: the file as canonical JSON."""
    report = file.report
    signed = "signed by the silo's key" if file.signature else f"not signed: {file.unsigned_because}"
    return chapters.front(
        report.summary,
        title=_title(report),
        description=f"{report.product.description} Made at {report.made_at:%Y-%m-%d %H:%M} UTC, {signed.rstrip('.')}.",
        figures=pictures(report),
        chapters=_chapters(file),
        data=data,
    )


def _title(report: PrivacyReport) -> str:
    if report.kind is Kind.PLAN:
        return f"Privacy report before a run: study {report.product.name}, silo {report.silo}"
    return f"Privacy report: {report.product.name}, silo {report.silo}"


def _chapters(file: ReportFile) -> Iterator[Chapter]:
    """All after page one."""
    report = file.report
    yield Chapter("What is not protected", items=report.dp_flavor.unprotected_quantities)
    loss = report.privacy_loss
    yield chapters.figures(loss.privacy_unit, loss.privacy_unit_description, loss.alone, loss.lifetime)
    yield chapters.assumptions(report.accounting.assumptions, _DECLARED)
    yield _data(report)
    yield _lifetime(report)
    yield _runs(report)
    yield chapters.checks(report.accounting.cross_check, _CHECKED, loss.lifetime)
    yield chapters.promise(report.dp_flavor, report.model, report.implementation, report.accounting)
    yield Chapter("Who sees what", tables=(pairs((actor.name, actor.sees) for actor in report.model.actors),))
    yield Chapter("Tested by attack", text=report.empirical.note, tables=audits.tables(report.empirical.audits))
    yield _events(report)
    governance = report.governance
    yield from chapters.ending(
        _signature(file), "the silo's signature, and the ledger's head", governance.said, governance.to_be_filled_in
    )


def _data(report: PrivacyReport) -> Chapter:
    head = ("Dataset", "Records", "Patients", "Patients left out (exclude.csv)")
    rows = [
        (
            one.name,
            str(one.num_records),
            "not known" if one.num_patients is None else str(one.num_patients),
            "none known" if one.num_excluded is None else str(one.num_excluded),
        )
        for one in report.datasets
    ]
    text = "As they are in the ledger, with test records; datasets that share a patient or a record are charged as one."
    table = Table(head, tuple(rows))
    return Chapter("The data", text=text if rows else "The ledger knows none.", tables=(table,) if rows else ())


def _lifetime(report: PrivacyReport) -> Chapter:
    found = report.accounting.lifetime
    plan = report.kind is Kind.PLAN
    rows = [
        ("Budget", "none" if found.budget is None else f"epsilon {found.budget:g}"),
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
            f"{chapters.mode_in_words(run.mode)}, per {run.unit}" if run.mode != "none" else "none",
            str(run.num_releases),
            f"{num_steps}" + f" (+ {to_come})" * bool(to_come),
            say(run.epsilon),
            "; ".join(filter(None, (noise or planned, known))),
        )
        rows.append(cells)
    return Chapter("Every run on these patients", tables=(Table(head, tuple(rows)),) if rows else (), text=_none(rows))


def _none(rows: Sequence[Row]) -> str:
    return "In brackets: steps that may still come." if rows else "There was none."


def _events(report: PrivacyReport) -> Chapter:
    accounting = report.accounting
    rows = [
        (
            f"{one.at:%Y-%m-%d %H:%M}",
            one.run,
            str(one.round),
            one.attempt[:8],
            told(one.events) or "without noise",
        )
        for one in accounting.releases
    ]
    if accounting.lost_entries:
        rows.append(("", "lost entries", "", "", told(accounting.lost_entries)))
    return Chapter(
        "Every release",
        text="What was charged, as it happened. From these lines anybody can compute the figures again (times in UTC)."
        if rows
        else "Nothing was released yet.",
        tables=(Table(("At", "Run", "Round", "Attempt", "Charged"), tuple(rows)),) if rows else (),
    )


def _signature(file: ReportFile) -> list[tuple[str, str]]:
    book, signature = file.report.governance.ledger, file.signature
    facts = [("Report made at", f"{file.report.made_at:%Y-%m-%d %H:%M} UTC")]
    if book is not None:
        signed = "not yet" if book.countersigned is None else f"up to entry {book.countersigned}"
        facts += [("Ledger's head", f"entry {book.seq}, {book.head}"), ("Countersigned by the server", signed)]
    if file.report.product.spec_hash:
        facts.append(("Spec", file.report.product.spec_hash))
    return facts + chapters.signature_lines(signature, file.unsigned_because)
