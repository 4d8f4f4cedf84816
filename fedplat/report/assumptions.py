"""What the figures rest on, and whether it holds as far as the ledger can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedplat.report.material import Material
from fedplat.report.model import Assumption, CheckedEpsilon, Lifetime, Status

DECLARED = (
    ("sampling", "Each step samples every patient or record independently, by a key that only the silo has."),
    ("clipping", "Every gradient is clipped before the sum, in whatever way the model is computed."),
    ("noise", "The noise is drawn from the operating system's randomness, once a step, and never drawn again."),
    (
        "model-checked",
        "The silo has refused models with layers that mix patients or keep figures about them (batch norm).",
    ),
    (
        "public-settings",
        "Scales, categories, clip norm and the other settings were chosen without these patients' data, or by runs"
        " that were charged.",
    ),
    ("preprocessing", "Values are scaled and filled in by constants that were declared, not computed from records."),
    ("public-size", "The number of patients or records is no secret; sums are divided by a declared constant."),
    ("noted-first", "Every release was in the ledger, on disk, before its first byte left."),
    ("distinct-patients", "Patients who are in several hospitals' data are charged in each; their losses compose."),
    (
        "computer-numbers",
        "Rounding in floating-point arithmetic gives nothing away; the noise is not exact to the last bit.",
    ),
)


FAR_BELOW = "So many, on average, epsilon may not protect: it should be far below one."


def assumptions(
    material: Material, checks: tuple[CheckedEpsilon, ...], lifetime: Lifetime, *, is_bounded: bool
) -> tuple[Assumption, ...]:
    """Those that can be checked first."""
    declared = (Assumption(name=name, status=Status.DECLARED, statement=text) for name, text in DECLARED)
    return (*_book(material), *_figures(material, checks, lifetime, is_bounded), *_data(material), *declared)


def _book(material: Material) -> Iterator[Assumption]:
    book = material.book
    whole = "The silo's ledger is as it was written, from its first entry to its last."
    if book is None:
        yield Assumption(name="ledger-whole", status=Status.DECLARED, statement=whole, detail="There is no ledger yet.")
        return
    yield judge("ledger-whole", not book.problem, whole, book.problem or f"{book.seq} entries, each sealing the last.")
    known = "The server knows the ledger too, so that an old copy in its place would be found out."
    if book.countersigned is None:
        detail = "The server has not signed any entry yet."
        yield Assumption(name="countersigned", status=Status.DECLARED, statement=known, detail=detail)
    else:
        detail = f"Signed up to entry {book.countersigned} of {book.seq}: it signs when a run begins."
        yield judge("countersigned", True, known, detail)
    if material.lost:
        num = sum(event.num_steps for event in material.lost)
        yield Assumption(
            name="lost-entries",
            status=Status.DECLARED,
            statement="Entries that an old copy of the ledger lacked are charged in full.",
            detail=f"{num} steps were charged for them; of runs that nobody knows any more nothing is charged.",
        )


def _figures(
    material: Material, checks: tuple[CheckedEpsilon, ...], lifetime: Lifetime, is_bounded: bool
) -> Iterator[Assumption]:
    bare = [run.run for run in material.runs if not run.has_privacy]
    yield judge(
        "all-private", not bare and is_bounded, "Every run on these patients has differential privacy.", _list(bare)
    )
    yield agreement(checks)
    others = [run.run for run in material.runs if run.has_privacy and run.unit != material.unit]
    yield judge("one-unit", not others, f"Every run protects the same: a {material.unit}.", _list(others))
    yield _metrics(material)
    if lifetime.fits is not None:
        yield judge("within-budget", lifetime.fits, "All that runs spent, and may still spend, is within the budget.")


def _metrics(material: Material) -> Assumption:
    """Of the specs that are known here; a run that is over leaves the hash of its spec alone."""
    statement = "Figures of merit (loss, accuracy ...) leave with noise that is counted, or not at all."
    bare = [run.run for run in material.runs if run.spec is not None and not run.spec.counts_metrics]
    unknown = [run.run for run in material.runs if run.spec is None]
    if bare or not unknown:
        return judge("metrics-counted", not bare, statement, _list(bare))
    detail = f"What the spec says is not known here any more: {', '.join(unknown)}."
    return Assumption(name="metrics-counted", status=Status.DECLARED, statement=statement, detail=detail)


def _data(material: Material) -> Iterator[Assumption]:
    sizes = [d.num_patients if material.unit == "patient" else d.num_records for d in material.datasets]
    num = material.num_units or sum(size or 0 for size in sizes)
    small = f"Delta is below 1 / number of {material.unit}s."
    if num:
        detail = f"{material.delta:g} x {num} = {material.delta * num:.2g}. {FAR_BELOW}"
        yield judge("small-delta", material.delta * num < 1, small, detail)
    else:
        yield Assumption(name="small-delta", status=Status.DECLARED, statement=small, detail="The number is not known.")
    if material.num_units is not None and any(sizes):
        yield judge(
            "units-as-declared",
            material.num_units <= num_known(sizes),
            "A plan samples from no more than there are.",
            f"{material.num_units} declared, {num_known(sizes)} known.",
        )
    if material.unit == "record":
        yield _one_record_each(material)


def _one_record_each(material: Material) -> Assumption:
    statement = "Each patient has one record."
    known = [(d.num_records, d.num_patients) for d in material.datasets if d.num_patients is not None]
    if any(records > patients for records, patients in known):
        return Assumption(
            name="one-record-each", status=Status.FAIL, statement=statement, detail="Some have several: see the unit."
        )
    status = Status.PASS if known and len(known) == len(material.datasets) else Status.DECLARED
    return Assumption(name="one-record-each", status=status, statement=statement)


def num_known(sizes: list[int | None]) -> int:
    """The most units that any of the datasets has."""
    return max((size or 0 for size in sizes), default=0)


def agreement(checks: Iterable[CheckedEpsilon]) -> Assumption:
    """Whether every figure was found by other accountants, too."""
    done = list(checks)
    wrong = "; ".join(failure for check in done for failure in check.failures)
    by = "RDP" if any(check.prv_lower is None for check in done) else "RDP and PRV"
    return judge("accountants-agree", not wrong, "Other accountants agree about epsilon.", wrong or f"Checked by {by}.")


def judge(name: str, holds: bool, statement: str, detail: str = "") -> Assumption:
    """Pass or fail."""
    return Assumption(name=name, status=Status.PASS if holds else Status.FAIL, statement=statement, detail=detail)


def _list(runs: list[str]) -> str:
    return f"Not so: {', '.join(runs)}." if runs else ""
