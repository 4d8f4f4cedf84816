"""The plots of a silo's privacy report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedplat.report.drawing import Figure
from fedplat.report.material import RunState
from fedplat.report.model import Accounting, Loss, PrivacyReport, RunLine
from fedplat.report.plots import Axis, Line, bar, bar_plot, line_plot

MOST_BARS = 40
"""More on one page nobody can read."""


def pictures(report: PrivacyReport) -> Iterator[Figure]:
    """Those for which there is something to show."""
    loss, accounting = report.privacy_loss, report.accounting
    named = [("all together", loss.lifetime, "main")]
    if loss.alone is not None:
        named.append(("this run alone", loss.alone, "other"))
    yield trade_off(named)
    if len(accounting.epsilon_over_releases) > 1:
        yield _over_releases(accounting)
    if accounting.runs:
        yield _bars(accounting)


def trade_off(losses: Sequence[tuple[str, Loss, str]]) -> Figure:
    """Of each (name, loss, style): how well the best test tells who took part."""
    same = len(losses) > 1 and len({loss.trade_off for _, loss, _ in losses}) == 1
    shown = [(" and ".join(name for name, _, _ in losses), *losses[0][1:])] if same else losses
    lines = [Line(name, [(p.fpr, p.tpr) for p in loss.trade_off], style) for name, loss, style in shown]
    return line_plot(
        "How well the best test tells whether somebody took part",
        Axis("falsely accused (false positive rate)", 1),
        Axis("found (true positive rate)", 1),
        [*lines, Line("a coin toss", [(0, 0), (1, 1)], "coin")],
    )


def _over_releases(accounting: Accounting) -> Figure:
    points = [(p.num_releases, p.epsilon) for p in accounting.epsilon_over_releases]
    budget, end = accounting.lifetime.budget, max(points[-1][0], 1)
    most = max(points[-1][1], budget or 0) or 1.0
    lines = [Line("spent", points, "main")]
    if budget is not None:
        lines.append(Line(f"budget {budget:g}", [(0, budget), (end, budget)], "limit"))
    is_whole = points[-1][0] == len(accounting.releases)
    upto = "over all releases so far" if is_whole else "up to the first release from which on nothing bounds it"
    name = f"Epsilon at delta {accounting.lifetime.delta:g} {upto}"
    x = Axis("releases (rounds of all runs)", end, whole=True)
    return line_plot(name, x, Axis("epsilon", most * 1.1), lines)


def _bars(accounting: Accounting) -> Figure:
    own = [bar(run.run, run.epsilon, _style(run)) for run in accounting.runs[-MOST_BARS:]]
    total = bar("all together", accounting.lifetime.after, "main")
    num = len(accounting.runs)
    which = "each run" if num <= MOST_BARS else f"each of the last {MOST_BARS} runs of {num}"
    name = f"Epsilon of {which} alone, and of all together (they do not add up)"
    label = f"epsilon at delta {accounting.lifetime.delta:g}"
    return bar_plot(name, label, [*own, total], accounting.lifetime.budget)


def _style(run: RunLine) -> str:
    return "other" if run.state is not RunState.PLANNED else "main"
