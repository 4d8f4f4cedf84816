"""The parts that the reports of a silo and of the federation have in common, as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fedplat.ledger import Events, Unit
from fedplat.privacy.values import round_up
from fedplat.report.document import Chapter, Document, Table, pairs
from fedplat.report.drawing import Figure
from fedplat.report.federation.model import FederationAccounting
from fedplat.report.glossary import NOT_ANSWERED, WORDS
from fedplat.report.model import (
    Accounting,
    Assumption,
    CheckedEpsilon,
    Flavor,
    Implementation,
    Loss,
    ReportSignature,
    TrustModel,
)
from fedplat.report.wording import ATTENTION, TIMES, say

_RATES = (0.001, 0.01, 0.05, 0.1)
_MODES = {"none": "none", "record": "DP-SGD"}
_POINTER = "The words are explained at the end, where it also says what this report does not answer."


def front(
    summary: Sequence[str],
    *,
    title: str,
    description: str,
    figures: Iterable[Figure],
    chapters: Iterable[Chapter],
    data: str,
) -> Document:
    """The document whose page one says the odds first, then the rest of the summary, then what does not hold."""
    headlines = tuple(line for line in summary if TIMES in line)
    alarms = tuple(line for line in summary if line.startswith(ATTENTION))
    return Document(
        title=title,
        description=description,
        headlines=headlines,
        lines=(*(line for line in summary if line not in headlines and line not in alarms), _POINTER),
        alarms=alarms,
        figures=tuple(figures),
        chapters=tuple(chapters),
        data=data,
    )


def figures(unit: Unit, whom: str, alone: Loss | None, lifetime: Loss) -> Chapter:
    """All figures, of the run and of all together; `whom`: whom they protect, in a sentence."""
    named = [("This run alone", _loss(alone))] if alone is not None else []
    named.append(("All together", _loss(lifetime)))
    head = ("", *(name for name, _ in named))
    rows = tuple((label, *(cells[label] for _, cells in named)) for label in named[0][1])
    return Chapter(
        f"What can be told about one {unit}",
        text=f"{whom} All figures are upper bounds, rounded up, for the best test there is: by somebody who has every"
        f" release and knows the data of everybody else. Whatever else the releases may tell about one {unit} has the"
        " same epsilon for a bound.",
        tables=(Table(head, rows),),
    )


def _loss(loss: Loss) -> dict[str, str]:
    rates = {point.fpr: point.tpr for point in loss.trade_off}
    told = {
        f"Found, where {100 * rate:g}% of the others are falsely accused": f"at most {round_up(rates[rate], 3):.1%}"
        for rate in _RATES
    }
    return {
        "Right in 100 times": "no bound" if loss.epsilon is None else f"at most {loss.right_in_100}",
        "Membership advantage": say(loss.membership_advantage),
        f"Epsilon at delta {loss.delta:g}": say(loss.epsilon),
        "Gaussian mu": say(loss.gdp_mu),
    } | told


def assumptions(found: Sequence[Assumption], declared: str) -> Chapter:
    """What the figures rest on; `declared`: what that word means here."""
    rows = tuple((one.status.value, one.statement, one.detail) for one in found)
    return Chapter(
        "What the figures rest on", text=f"declared: {declared}.", tables=(Table(("", "Assumption", ""), rows),)
    )


def checks(found: Sequence[CheckedEpsilon], more: str, lifetime: Loss) -> Chapter:
    """What other accountants say; `more`: what becomes of that."""
    part = "" if lifetime.epsilon is not None else " Here they are of the noised releases alone: the rest has no bound."
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
        text=f"The report's (PLD) must be at most RDP's, which is by the same library, dp-accounting. {more}{part}",
        tables=(Table(("", "PLD", "RDP", "PRV", ""), rows),),
    )


def promise(
    flavor: Flavor, trust: TrustModel, made: Implementation, accounting: Accounting | FederationAccounting
) -> Chapter:
    """For whoever knows the field's terms."""
    facts = [
        ("Promise", flavor.name),
        ("Neighbours", flavor.input_metric),
        ("Measure", flavor.output_measure),
        ("Data", flavor.data_domain),
        ("Trust", trust.model_name),
        ("Mechanism", made.mechanisms),
        ("Randomness", made.randomness),
        ("Accountant", f"{accounting.accountant}, version {accounting.accountant_version}"),
        ("Software", f"{made.software} {made.software_version} made this report; older runs may be by an older one"),
    ]
    return Chapter("The promise in technical words", tables=(pairs(facts),))


def told(events: Events) -> str:
    """Events in words."""
    return "; ".join(
        f"{e.num_steps} step{'' if e.num_steps == 1 else 's'}, rate {e.sampling_rate:.6g},"
        f" noise multiplier {e.noise_multiplier:g}"
        for e in events
    )


def mode_in_words(mode: str) -> str:
    """What protects."""
    return _MODES.get(mode, mode)


def ending(
    signature: Sequence[tuple[str, str]], checks: str, said: Sequence[tuple[str, str]], to_be_filled_in: Iterable[str]
) -> Iterator[Chapter]:
    """The last chapters. `checks`: what verifying compares; `said`: what the spec's [governance] says."""
    yield Chapter("What this report does not answer", items=NOT_ANSWERED)
    yield Chapter("The words", tables=(pairs(WORDS),))
    yield Chapter(
        "Signature",
        text=f"The command fedplat report verify FILE checks {checks}, in the HTML or the JSON of this report. A PDF or"
        " a print cannot be checked.",
        tables=(pairs(signature),),
    )
    tables = [pairs(said)] if said else []
    blank = pairs((label, "") for label in to_be_filled_in)
    yield Chapter("Who answers for it", tables=(*tables, blank))


def signature_lines(signature: ReportSignature | None, unsigned_because: str) -> list[tuple[str, str]]:
    """Who signed, or why nobody did."""
    if signature is None:
        return [("Signature", f"none. {unsigned_because}")]
    return [("Signed by the key", signature.fingerprint), ("Signature", signature.signature)]
