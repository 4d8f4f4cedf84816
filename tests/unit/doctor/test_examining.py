"""The doctor itself: what hangs ends, what breaks is told, what cannot be looked at is skipped, and says why."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedplat.cli import load_commands
from fedplat.commands import doctor
from fedplat.doctor import Asked, Check, Finding, Level, Line, Subject, console, examine, failed, ok, warning


def examined(*checks: Check) -> list[Line]:
    return list(examine(Subject("a machine", checks)))


def test_a_check_that_hangs_ends() -> None:
    def hang() -> Finding:
        threading.Event().wait()
        return ok("never")

    begun = time.monotonic()
    [found, other] = examined(Check("slow", hang, timeout_s=0.1), Check("next", lambda: ok("fine")))
    assert time.monotonic() - begun < 2
    assert (found.level, found.found) == (Level.FAILED, "no result after 0.1 s: given up")
    assert other.level is Level.OK


def test_a_check_that_breaks_says_no_more_than_its_type() -> None:
    def divide() -> Finding:
        raise ZeroDivisionError("patient 4711")

    [found] = examined(Check("broken", divide))
    assert (found.level, found.found) == (Level.FAILED, "the check broke off (ZeroDivisionError)")
    assert "4711" not in found.todo


def test_what_depends_on_a_failure_is_skipped_and_names_the_first_cause() -> None:
    lines = examined(
        Check("a", lambda: failed("bad", "mend it")),
        Check("b", lambda: ok("fine"), ("a",)),
        Check("c", lambda: ok("fine"), ("b",)),
        Check("d", lambda: warning("odd", "look"), ()),
        Check("e", lambda: ok("fine"), ("d",)),
    )
    assert [found.level for found in lines] == ["failed", "skipped", "skipped", "warning", "ok"]
    assert lines[2].found == "skipped, because the check 'a' has failed"


@pytest.mark.parametrize(("worst", "status"), [(ok("fine"), 0), (warning("odd", "look"), 0), (failed("bad", "do"), 1)])
def test_the_exit_status_and_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], worst: Finding, status: int
) -> None:
    subject = Subject("a machine", (Check("first", lambda: ok("fine")), Check("second", lambda: worst)))
    monkeypatch.setattr(console, "find_subjects", lambda _asked: [subject])
    assert console.run_doctor(Asked(tmp_path), as_json=True) == status
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] == (status == 0)
    assert told["subjects"][0]["checks"][1] == {
        "check": "second",
        "level": worst.level,
        "found": worst.found,
        "todo": worst.todo,
    }
    assert console.run_doctor(Asked(tmp_path), as_json=False) == status
    told = capsys.readouterr().out
    assert worst.found in told
    assert worst.todo in told


def test_a_machine_without_anything_is_told_so(tmp_path: Path) -> None:
    from fedplat.errors import NotFoundError

    with pytest.raises(NotFoundError, match="neither a server nor a silo"):
        CliRunner().invoke(doctor, ["--home", str(tmp_path)], catch_exceptions=False)
    assert "doctor" in load_commands().commands
