"""What a silo found by attacking its own training, as a report says it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import AwareDatetime

from fedplat.privacy.values import round_up
from fedplat.report.document import Row, Table
from fedplat.report.material import AuditFacts, Material
from fedplat.report.model import Empirical
from fedplat.report.wording import ATTENTION, say

_NONE = (
    "No attack was run against this silo's training; the figures are proofs, not measurements. To run one, offline:"
    " fedplat client audit --spec study.toml"
)
_OTHER = " The plan of this report itself was not audited: the audits were of other plans on the same patients."
_HEAD = ("Audit", "Result", "Epsilon promised", "Epsilon found", "What was tried", "Would notice")


def empirical(material: Material) -> Empirical:
    """The newest first; passed if the newest of each plan has."""
    audits, run = material.audits, material.the_run
    if not audits:
        return Empirical(note=_NONE)
    ordered = tuple(sorted(audits, key=_age, reverse=True))
    is_other = run is not None and run.spec_hash not in {audit.spec_hash for audit in audits}
    note = _note(ordered) + _OTHER * is_other
    return Empirical(audit="failed" if _failures(audits) else "passed", note=note, audits=ordered)


def alarms(audits: Sequence[AuditFacts]) -> tuple[str, ...]:
    """Page one, where an attack found more than was promised, and the same plan has not passed since."""
    return tuple(
        f"{ATTENTION}: the audit of {audit.made_at:%Y-%m-%d} found epsilon {say_down(audit.found_epsilon)} or more,"
        f" where {say(audit.claimed_epsilon)} was promised. Do not rely on the figures before that is explained."
        for audit in _failures(audits)
    )


def tables(audits: Sequence[AuditFacts]) -> tuple[Table, ...]:
    """A row each."""
    return (Table(_HEAD, tuple(map(_row, audits))),) if audits else ()


def say_down(epsilon: float) -> str:
    """A lower bound, rounded down to three digits after the point."""
    return f"{int(epsilon * 1000) / 1000:.3f}"


def say_notice(factor: float | None) -> str:
    """What the audit can find."""
    return "nothing" if factor is None else f"noise {round_up(factor, 1):g} times too small"


def _note(audits: Sequence[AuditFacts]) -> str:
    """How often it was tried belongs to it."""
    newest, num_failed = audits[0], sum(not audit.passed for audit in audits)
    result = "no more than" if newest.passed else "MORE than"
    return (
        f"On {newest.made_at:%Y-%m-%d} this silo attacked its own training by {newest.num_canaries} {newest.unit}s who"
        f" do not exist, and found {result} the promise allows. Audits so far: {len(audits)}, of which {num_failed}"
        f" failed; software as good as its promise fails one in {one_in(newest.confidence)} at most. What is found are"
        " lower bounds: the attack tests the software, and that it finds nothing proves nothing; the other figures of"
        f" this report are proofs. Method: {newest.method}."
    )


def one_in(confidence: float) -> int:
    """One of how many audits finds what is not there."""
    return round(1 / (1 - confidence))


def _row(audit: AuditFacts) -> Row:
    return (
        f"{audit.made_at:%Y-%m-%d %H:%M} UTC; dataset {audit.dataset}, spec {audit.spec_hash[:8]}; fedplat"
        f" {audit.software_version}, code {audit.code_sha256[:8]}",
        "pass" if audit.passed else "fail",
        f"at most {say(audit.claimed_epsilon)} at delta {audit.delta:g}",
        f"at least {say_down(audit.gaussian_epsilon)} (Gaussian fit), {say_down(audit.one_run_epsilon)} (one run);"
        f" {audit.confidence:.0%} confidence",
        f"{audit.num_steps} of {audit.num_planned_steps} steps, rate {audit.sampling_rate:.4g},"
        f" noise multiplier {audit.noise_multiplier:g}, {audit.engine}",
        say_notice(audit.noticed_noise_factor),
    )


def _failures(audits: Sequence[AuditFacts]) -> tuple[AuditFacts, ...]:
    newest = {(audit.dataset, audit.spec_hash): audit for audit in sorted(audits, key=_age)}
    return tuple(audit for audit in newest.values() if not audit.passed)


def _age(audit: AuditFacts) -> AwareDatetime:
    return audit.made_at
