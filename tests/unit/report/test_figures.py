"""What is in the report: figures from the composed events, and sentences that say no less."""

from __future__ import annotations

import pytest

from fedplat.ledger import to_wire
from fedplat.privacy import PrvBounds, checks, epsilon
from fedplat.report import (
    BookFacts,
    DatasetFacts,
    Limit,
    PrivacyReport,
    ReportFile,
    RunState,
    make_report,
    render,
    sign_report,
    unsigned_report,
)
from fedplat.report.drawing import Path, Words
from fedplat.report.figures import right_in_100
from fedplat.report.model import Kind, Status
from fedplat.report.pictures import trade_off
from fedplat.report.plots import Bar, bar_plot
from tests.unit.report.scene import KEY, material, release, run, spec_facts, steps


def judged(report: PrivacyReport, name: str) -> Status:
    return next(one.status for one in report.accounting.assumptions if one.name == name)


def test_the_odds_are_rounded_up() -> None:
    assert [right_in_100(gain) for gain in (0, 0.16, 0.161019, 0.1800001, 1)] == [50, 58, 59, 60, 100]


def test_runs_are_composed_and_not_added(file: ReportFile) -> None:
    """1000 steps in all: the table of the accountant."""
    report = file.report
    loss, life = report.privacy_loss, report.accounting.lifetime
    assert loss.alone is not None
    assert loss.alone.epsilon == epsilon([steps(600)], delta=1e-5)
    assert loss.lifetime.epsilon == pytest.approx(1.828, abs=5e-4)
    assert loss.lifetime.right_in_100 == 59
    assert life.before == epsilon([steps(400)], delta=1e-5)
    assert life.after == loss.lifetime.epsilon
    assert life.committed == epsilon([steps(1400)], delta=1e-5)
    assert life.remaining == pytest.approx(3 - (life.committed or 0))
    assert life.fits is True
    assert [(r.run, r.epsilon, r.num_releases) for r in report.accounting.runs] == [
        ("r-1", life.before, 4),
        ("r-2", loss.alone.epsilon, 6),
    ]


def test_page_one_is_in_odds(file: ReportFile) -> None:
    first, second, *_ = file.report.summary
    assert "From what run r-2 released alone: someone who tries to tell from the model whether a patient" in first
    assert "right at most 59 times in 100, where a coin toss is right 50 times" in second


def test_the_curves_end_where_the_figures_are(file: ReportFile) -> None:
    points = file.report.accounting.epsilon_over_releases
    assert [point.num_releases for point in points] == list(range(11))
    assert (points[0].epsilon, points[-1].epsilon) == (0, file.report.privacy_loss.lifetime.epsilon)
    rates = file.report.privacy_loss.lifetime.trade_off
    assert all(point.tpr >= point.fpr for point in rates)
    assert next(p.tpr for p in rates if p.fpr == 0.01) == pytest.approx(0.0291, abs=5e-4)


def test_other_accountants_agree(file: ReportFile) -> None:
    check = file.report.accounting.cross_check[-1]
    assert check.pld is not None
    assert check.rdp == pytest.approx(2.101, abs=5e-4)
    assert check.failures == ()
    [agreed] = [one for one in file.report.accounting.assumptions if one.name == "accountants-agree"]
    assert (agreed.status, agreed.detail) == (Status.PASS, "Checked by RDP and PRV.")


def test_nobody_signs_what_the_accountants_disagree_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "prv_bounds", lambda *_, **__: PrvBounds(lower=5, upper=6))
    file = sign_report(KEY, make_report(material()))
    assert file.signature is None
    assert "not between the PRV bounds" in file.unsigned_because
    assert judged(file.report, "accountants-agree") is Status.FAIL
    assert any(line.startswith("Attention") for line in file.report.summary)


def test_nobody_signs_a_book_that_is_not_whole() -> None:
    book = BookFacts(seq=9, head="0" * 64, countersigned=None, problem="entry 12 is missing")
    file = sign_report(KEY, make_report(material(book=book)))
    assert file.signature is None
    assert "entry 12 is missing" in file.unsigned_because
    assert judged(file.report, "ledger-whole") is Status.FAIL


def test_one_release_without_noise_takes_every_bound_away() -> None:
    bare = run("bare", mode="none", has_privacy=False)
    report = make_report(material(runs=(run("r-1"), bare), releases=(release("bare", 1, 0),), subject=None))
    assert report.kind is Kind.LIFETIME
    assert (report.privacy_loss.lifetime.epsilon, report.privacy_loss.lifetime.right_in_100) == (None, 100)
    assert report.accounting.lifetime.fits is False
    assert judged(report, "all-private") is Status.FAIL
    assert "there is no bound" in report.summary[0]
    assert "no epsilon bounds" in report.summary[1]
    assert "bare" in report.dp_flavor.unprotected_quantities[-1]
    assert report.accounting.runs[1].epsilon is None
    assert "of the noised releases alone" in render(unsigned_report(report, "no key"), "md")


def test_a_plan_is_weighed_with_all_that_may_still_come() -> None:
    planned = run("next (plan)", RunState.PLANNED, rest=2000, spec=spec_facts("none"))
    runs = (*material().runs, planned)
    report = make_report(material(runs=runs, subject="next (plan)", num_units=900))
    life = report.accounting.lifetime
    assert report.kind is Kind.PLAN
    assert report.privacy_loss.alone is not None
    assert report.privacy_loss.alone.epsilon == epsilon([steps(2000)], delta=1e-5)
    assert life.before == epsilon([steps(1400)], delta=1e-5)
    assert life.after == life.committed == epsilon([steps(3400)], delta=1e-5)
    assert (life.fits, judged(report, "within-budget")) == (False, Status.FAIL)
    assert "would be right" in report.summary[0]
    assert "this plan included" in report.summary[1]
    assert "does not know this dataset" not in " ".join(report.summary)
    assert any("metrics = none" in line for line in report.dp_flavor.unprotected_quantities)


def test_noised_metrics_are_counted_and_not_called_unprotected() -> None:
    """Ten releases, each with an evaluation beside its steps, and the closing one."""
    figures, closing = steps(1, noise=20.0, rate=1.0), release("r-2", 11, 0)
    releases = [
        one.model_copy(update={"events": (*one.events, *to_wire([figures]))}) for one in (*material().releases, closing)
    ]
    runs = (run("r-1", spec=spec_facts("noised")), run("r-2", spec=spec_facts("noised")))
    found = sign_report(KEY, make_report(material(runs=runs, releases=tuple(releases))))
    report = found.report
    assert report.privacy_loss.alone is not None
    assert report.privacy_loss.alone.epsilon == epsilon([steps(600), steps(7, noise=20.0, rate=1.0)], delta=1e-5)
    assert report.privacy_loss.alone.epsilon > epsilon([steps(600)], delta=1e-5)
    assert (judged(report, "metrics-counted"), judged(report, "accountants-agree")) == (Status.PASS, Status.PASS)
    assert found.signature is not None
    told = " ".join(report.dp_flavor.unprotected_quantities)
    assert "Nothing through figures of merit" in told
    assert "leave without noise" not in told
    text = render(found, "md")
    for line in (
        "1 step, rate 1, noise multiplier 20",
        "metrics noised",
        "Gaussian noise of a noise multiplier of their",
    ):
        assert line in text, line


def test_a_plan_on_data_that_the_book_does_not_know_says_so() -> None:
    planned = run("next (plan)", RunState.PLANNED, rest=10, dataset="other", spec=spec_facts("none"))
    new = make_report(material(runs=(planned,), releases=(), datasets=(), subject="next (plan)", num_units=900))
    assert "does not know this dataset" in " ".join(new.summary)


def test_how_many_delta_leaves_open_is_told(file: ReportFile) -> None:
    [detail] = [one.detail for one in file.report.accounting.assumptions if one.name == "small-delta"]
    assert detail.startswith("1e-05 x 1000 = 0.01. So many, on average, epsilon may not protect")


def test_lost_entries_count() -> None:
    report = make_report(material(lost=to_wire([steps(500)]), subject=None))
    assert report.privacy_loss.lifetime.epsilon == epsilon([steps(1500)], delta=1e-5)
    assert report.accounting.epsilon_over_releases[0].epsilon == epsilon([steps(500)], delta=1e-5)
    assert judged(report, "lost-entries") is Status.DECLARED


def test_what_holds_is_not_said_to_fail(file: ReportFile) -> None:
    assert not [one for one in file.report.accounting.assumptions if one.status is Status.FAIL]
    assert not [line for line in file.report.summary if line.startswith("Attention")]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"delta": 0.01}, "small-delta"),
        ({"limits": (Limit(epsilon=1, delta=1e-5, unit="patient"),)}, "within-budget"),
        ({"runs": (run("r-1"), run("r-2", unit="record"))}, "one-unit"),
        ({"runs": (run("r-1"), run("r-2", spec=spec_facts("unprotected")))}, "metrics-counted"),
        ({"unit": "record"}, "one-record-each"),
        ({"num_units": 2000}, "units-as-declared"),
    ],
)
def test_what_does_not_hold_is_said_on_page_one(changes: dict[str, object], name: str) -> None:
    report = make_report(material(**changes))
    assert judged(report, name) is Status.FAIL
    statement = next(one.statement for one in report.accounting.assumptions if one.name == name)
    assert f"Attention, this does not hold: {statement}" in report.summary


def test_a_silo_that_did_nothing_yet() -> None:
    nothing = {"runs": (), "releases": (), "subject": None, "limits": (), "book": None}
    report = make_report(material(**nothing, datasets=(DatasetFacts(name="x", num_records=0, num_patients=None),)))
    assert report.privacy_loss.lifetime.right_in_100 == 50
    assert report.accounting.lifetime.fits is None
    assert any("no budget" in line for line in report.summary)


@pytest.mark.parametrize(("subject", "claimed"), [("bare", False), (None, None), ("r-1", True)])
def test_no_noise_is_claimed_where_there_was_none(subject: str | None, claimed: bool | None) -> None:
    bare = run("bare", mode="none", has_privacy=False)
    report = make_report(material(runs=(run("r-1"), bare), releases=(release("bare", 1, 0),), subject=subject))
    seen = " ".join(actor.sees for actor in report.model.actors)
    assert ("each noised before it left" in seen) is (claimed is True)
    assert ("without any noise" in seen) is (claimed is False)
    assert report.model.model_name.startswith("noise in the silo") is (claimed is not False)
    assert report.dp_flavor.name.startswith("None") is (claimed is False)


def test_curves_that_are_the_same_are_drawn_once(file: ReportFile) -> None:
    loss = file.report.privacy_loss
    assert loss.alone is not None
    for other, lines in ((loss.alone, 3), (loss.lifetime, 2)):
        figure = trade_off([("all together", loss.lifetime, "main"), ("this run alone", other, "other")])
        assert len(figure.legend) == len([one for one in figure.shapes if isinstance(one, Path)]) == lines
    assert figure.legend[0] == ("all together and this run alone", "main")


@pytest.mark.parametrize("shown", ["0.25", "2.000", "12345.678", "without bound"])
def test_what_a_bar_says_is_in_the_plot_and_dark_where_there_is_room(shown: str) -> None:
    figure = bar_plot("t", "x", [Bar("a", ((2.0, "fifth"),), shown)])
    [words] = [one for one in figure.shapes if isinstance(one, Words) and one.text == shown]
    width = 7 * len(shown)
    assert (words.x - width if words.on_bar else words.x) > 150
    assert (words.x if words.on_bar else words.x + width) <= figure.width
    assert words.on_bar is (len(shown) > 7)
