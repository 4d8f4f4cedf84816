"""Runs the checks of a subject one after the other. Nothing that a check does ends the examination."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from fedplat.doctor.checks import Check, Finding, Level, Subject, failed
from fedplat.errors import FedplatError

log = logging.getLogger(__name__)
_AGAIN = "Mend that, then try again."


@dataclass(frozen=True)
class Line:
    """A check and what it has found."""

    check: str
    level: Level
    found: str
    todo: str = ""


def examine(subject: Subject) -> Iterator[Line]:
    """A line a check, in order, as soon as it is there."""
    bad: dict[str, str] = {}  # check -> the one that has failed at last
    for check in subject.checks:
        cause = next((bad[name] for name in check.needs if name in bad), None)
        finding = _look(check) if cause is None else _skip(cause)
        if finding.level in (Level.FAILED, Level.SKIPPED):
            bad[check.name] = cause or check.name
        yield Line(check.name, finding.level, finding.found, finding.todo)


def _skip(cause: str) -> Finding:
    return Finding(Level.SKIPPED, f"skipped, because the check {cause!r} has failed")


def _look(check: Check) -> Finding:
    """In a thread of its own, which is left behind where it hangs: it ends with the process."""
    answer: SimpleQueue[Finding] = SimpleQueue()
    threading.Thread(target=lambda: answer.put(_guarded(check)), name=f"check {check.name}", daemon=True).start()
    try:
        return answer.get(timeout=check.timeout_s)
    except Empty:
        return failed(
            f"no result after {check.timeout_s:g} s: given up",
            "Something hangs: a network share, a disk, a name server, a firewall that drops packets. Try again.",
        )


def _guarded(check: Check) -> Finding:
    """The boundary where an exception becomes a finding."""
    try:
        return check.look()
    except FedplatError as error:
        return failed(error.message, error.hint or _AGAIN)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return failed(f"{error.strerror or type(error).__name__}{where}", _AGAIN)
    except Exception as error:
        # Its type alone: the text of an error that nobody foresaw may hold a patient's value.
        log.debug("the check %s broke off", check.name, exc_info=error)
        if os.environ.get("FEDPLAT_DEBUG"):
            raise
        return failed(
            f"the check broke off ({type(error).__name__})",
            "This is a bug in fedplat, or in a task: FEDPLAT_DEBUG=1 shows where.",
        )
