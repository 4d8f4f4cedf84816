"""`fedplat doctor`: what is wrong on this machine, check by check, and what to do about it.

The core has the kinds of finding, the order of things and what both sides look at. Each side offers its own checks by
the entry point group `fedplat.doctor`: a function `subjects(asked)`.
"""

from __future__ import annotations

from fedplat.doctor.checks import Asked, Check, Finding, Level, Subject, failed, ok, warning
from fedplat.doctor.examining import Line, examine

__all__ = ["Asked", "Check", "Finding", "Level", "Line", "Subject", "examine", "failed", "ok", "warning"]
