"""The report as one HTML file: style and plots inside, no scripts, nothing from elsewhere, everything escaped.

The signed data are inside as well, so that the file can be verified: by them, and by writing it anew.
"""

from __future__ import annotations

import hmac
from html import escape, unescape

from fedplat.errors import IdentityError, WireError
from fedplat.report.facts import Chapter, Table, chapters, title
from fedplat.report.material import RunState
from fedplat.report.model import Accounting, PrivacyReport, ReportFile, RunLine, Status
from fedplat.report.plots import Axis, Line, bar_plot, line_plot
from fedplat.report.signing import canonical, read_report
from fedplat.report.style import STYLE

_OPEN, _CLOSE = '<pre id="report">', "</pre>"
_STATUS = {status.value for status in Status}
_ATTENTION = "Attention"
_MOST_BARS = 40


def as_html(file: ReportFile) -> str:
    """The whole document."""
    report = file.report
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title(report))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_front(file)}\n{''.join(map(_chapter, chapters(file)))}"
        f"<details><summary>The same report as data, which the signature is over</summary>\n"
        f"{_OPEN}{escape(canonical(file))}{_CLOSE}\n</details>\n</main>\n</body>\n</html>\n"
    )


def data_of(text: str) -> str:
    """The report inside an HTML file, as JSON. Raises WireError; IdentityError if the page says anything else."""
    start = text.find(_OPEN)
    end = text.find(_CLOSE, start)
    if start < 0 or end < 0:
        raise WireError("there is no report inside this HTML file", hint="Ask the silo for the file again.")
    data = unescape(text[start + len(_OPEN) : end])
    if not hmac.compare_digest(as_html(read_report(data)).encode(), text.encode("utf-8", "surrogatepass")):
        raise IdentityError(
            "the page does not say what the data inside it say",
            hint="It was altered, or made by another version of fedplat: verify the JSON of the same report.",
        )
    return data


def _front(file: ReportFile) -> str:
    report = file.report
    about = [line for line in report.summary if " right " in line]
    alarms = [line for line in report.summary if line.startswith(_ATTENTION)]
    others = [line for line in report.summary if line not in about and line not in alarms]
    signed = "signed by the silo's key" if file.signature else "not signed"
    made = f"Made at {report.made_at:%Y-%m-%d %H:%M} UTC, {signed}."
    return (
        f'<section class="front"><h1>{escape(title(report))}</h1>'
        f'<p class="from">{escape(report.product.description)} {made}</p>'
        f'<div class="odds">{_paragraphs(about)}</div>{_paragraphs(others)}'
        + (f'<div class="attention">{_paragraphs(alarms)}</div>' if alarms else "")
        + f"{_plots(report)}</section>"
    )


def _paragraphs(lines: list[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _chapter(chapter: Chapter) -> str:
    items = "".join(f"<li>{escape(item)}</li>" for item in chapter.items)
    return (
        f"<h2>{escape(chapter.title)}</h2>\n"
        + (f"<p>{escape(chapter.text)}</p>\n" if chapter.text else "")
        + (f"<ul>{items}</ul>\n" if items else "")
        + "".join(map(_table, chapter.tables))
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in table.rows
    )
    blank = not table.head and not any(row[1] for row in table.rows)
    kind = "pairs hand" if blank else "wide" if len(table.head) > 5 else "" if table.head else "pairs"
    return (
        f'<table class="{kind}">'
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{rows}</tbody></table>\n"
    )


def _cell(text: str) -> str:
    return f'<span class="{text}">{text}</span>' if text in _STATUS else escape(text)


def _plots(report: PrivacyReport) -> str:
    accounting = report.accounting
    parts = [_trade_off(report)]
    if len(accounting.epsilon_over_releases) > 1:
        parts.append(_over_releases(accounting))
    if accounting.runs:
        parts.append(_bars(accounting))
    return "".join(parts)


def _trade_off(report: PrivacyReport) -> str:
    loss = report.privacy_loss
    lines = [Line("all together", [(p.fpr, p.tpr) for p in loss.lifetime.trade_off], "main")]
    if loss.alone is not None:
        lines.append(Line("this run alone", [(p.fpr, p.tpr) for p in loss.alone.trade_off], "other"))
    lines.append(Line("a coin toss", [(0, 0), (1, 1)], "coin"))
    name = "How well the best test tells whether somebody took part"
    return line_plot(
        name, Axis("falsely accused (false positive rate)", 1), Axis("found (true positive rate)", 1), lines
    )


def _over_releases(accounting: Accounting) -> str:
    points = [(p.num_releases, p.epsilon) for p in accounting.epsilon_over_releases]
    budget, end = accounting.lifetime.budget, max(points[-1][0], 1)
    most = max(points[-1][1], budget or 0) or 1.0
    lines = [Line("spent", points, "main")]
    if budget is not None:
        lines.append(Line(f"budget {budget:g}", [(0, budget), (end, budget)], "limit"))
    is_whole = points[-1][0] == len(accounting.releases)
    upto = "over all releases so far" if is_whole else "up to the first release from which on nothing bounds it"
    name = f"Epsilon at delta {accounting.lifetime.delta:g} {upto}"
    return line_plot(name, Axis("releases (rounds of all runs)", end), Axis("epsilon", most * 1.1), lines)


def _bars(accounting: Accounting) -> str:
    own = [(run.run, run.epsilon, _colour(run)) for run in accounting.runs[-_MOST_BARS:]]
    total = ("all together", accounting.lifetime.after, "main")
    name = "Epsilon of each run alone, and of all together (they do not add up)"
    return bar_plot(name, f"epsilon at delta {accounting.lifetime.delta:g}", [*own, total], accounting.lifetime.budget)


def _colour(run: RunLine) -> str:
    return "bare" if run.epsilon is None else "other" if run.state is not RunState.PLANNED else "main"
