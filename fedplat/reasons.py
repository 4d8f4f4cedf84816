"""Typed reasons: what a silo may say about a failure.

A reason is a code with numbers and with names from the spec's schema; never a value, a path, free text or a
traceback, for those can hold a patient. People read the sentence that this table makes of it, at the server as well
as at the silo; the detail stays in the silo's own log.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fedplat.secagg.errors import Refusal, describe
from fedplat.spec.base import PLAIN

# Long enough for a column's name, too short and too plain for a record.
Word = Annotated[str, StringConstraints(max_length=200, pattern=PLAIN)]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_WORD = re.compile(r"\{(\w+)(!r)?\}")


class Code(StrEnum):
    """Why a silo does not do what it was asked. The text after each is for people; {words} are parameters."""

    POLICY = "policy"
    SPEC_MISMATCH = "spec_mismatch"
    NOT_NAMED = "not_named"
    BUSY = "busy"
    PAUSED = "paused"
    STOPPED = "stopped"
    DATASET_UNKNOWN = "dataset_unknown"
    DATASET_UNREADABLE = "dataset_unreadable"
    DATASET_EMPTY = "dataset_empty"
    COLUMN_MISSING = "column_missing"
    CATEGORY_UNKNOWN = "category_unknown"
    TARGET_UNKNOWN = "target_unknown"
    NUMBER_INVALID = "number_invalid"
    VALUE_MISSING = "value_missing"
    ONE_CLASS = "one_class"
    CONSTANT_COLUMN = "constant_column"
    TASK_MISSING = "task_missing"
    TASK_VERSION = "task_version"
    TASK_OPTIONS = "task_options"
    TASK_FAILED = "task_failed"
    LAYOUT = "layout"
    LAYOUT_DIFFERS = "layout_differs"
    FROZEN_DIFFERS = "frozen_differs"
    NO_MAJORITY = "no_majority"
    WORKERS_FAILED = "workers_failed"
    UPDATE_NOT_FINITE = "update_not_finite"
    UPDATE_TOO_LARGE = "update_too_large"
    MESSAGE_INVALID = "message_invalid"
    NOT_JOINED = "not_joined"
    NO_ANSWER = "no_answer"
    DISK_FULL = "disk_full"
    REVOKED = "revoked"
    MASKING_STATE = "masking_state"
    MASKING_REFUSED = "masking_refused"
    PRIVACY = "privacy"
    LEDGER = "ledger"
    LEDGER_BEHIND = "ledger_behind"
    LEDGER_DAMAGED = "ledger_damaged"
    BUDGET_EXCEEDED = "budget_exceeded"
    RUN_UNPROTECTED = "run_unprotected"
    APPROVAL_PENDING = "approval_pending"
    APPROVAL_REFUSED = "approval_refused"
    OUTSIDE_HOURS = "outside_hours"
    INTERNAL = "internal"


_TEXT: dict[Code, tuple[str, str]] = {
    Code.POLICY: (
        "its policy does not allow this: {rule}",
        "the silo's administrator decides, in policy.toml",
    ),
    Code.SPEC_MISMATCH: ("it knows this run with another spec", "submit the changed spec as a new run"),
    Code.NOT_NAMED: (
        "the spec names the silos that take part, and it is not among them",
        "submit a spec whose [silos] names has it as a new run",
    ),
    Code.BUSY: ("it is busy with another run", "it joins when that run ends"),
    Code.PAUSED: ("its administrator has paused it", "fedplat client pause --off at the silo"),
    Code.STOPPED: ("its administrator has stopped it", "fedplat client join at the silo"),
    Code.DATASET_UNKNOWN: (
        "it has no dataset {dataset!r}",
        "at the silo: fedplat client join --silo NAME --data {dataset}=PATH",
    ),
    Code.DATASET_UNREADABLE: (
        "its dataset {dataset!r} cannot be read",
        "the silo's log names the file and the line",
    ),
    Code.DATASET_EMPTY: (
        "its dataset {dataset!r} has no records in the {part} set",
        "check the file at the silo and [data] test_share",
    ),
    Code.COLUMN_MISSING: (
        "its data has no column {column!r}",
        "compare the file's header with [task.options]",
    ),
    Code.CATEGORY_UNKNOWN: (
        "column {column!r} holds a category that the schema does not list",
        "the silo's log names the line",
    ),
    Code.TARGET_UNKNOWN: (
        "the target {column!r} holds a class that the schema does not list",
        "the silo's log names the line",
    ),
    Code.NUMBER_INVALID: (
        "column {column!r} holds something that is not a finite number",
        "the silo's log names the line",
    ),
    Code.VALUE_MISSING: (
        "column {column!r} has a missing value, which the schema refuses",
        "set 'missing' for that column in the spec, or mend the data; the silo's log names the line",
    ),
    Code.ONE_CLASS: (
        "its training records are all of one class of {column!r}",
        "it can take part, but alone it cannot learn to tell classes apart",
    ),
    Code.CONSTANT_COLUMN: ("column {column!r} is constant in its data", "its standard deviation counts as 1"),
    Code.TASK_MISSING: (
        "the task {task!r} is not installed there",
        "install the package that offers it by the entry point fedplat.tasks",
    ),
    Code.TASK_VERSION: (
        "it has another version of the task {task!r} than the others",
        "install the same package version in all silos",
    ),
    Code.TASK_OPTIONS: ("the task {task!r} does not accept its options", "the silo's log says which"),
    Code.TASK_FAILED: ("the task failed while {phase}", "the silo's log has the detail"),
    Code.LAYOUT: ("its model does not fit the groups of [model]", "the silo's log names the pattern"),
    Code.LAYOUT_DIFFERS: (
        "its model has another layout than the others",
        "same task options and same package versions give the same layout",
    ),
    Code.FROZEN_DIFFERS: (
        "its frozen parameters differ from the others'",
        "all silos need the same base weights",
    ),
    Code.NO_MAJORITY: (
        "the silos disagree on the {what}, and none is the most common",
        "pin it in the spec, or name the silos of one kind in [silos] names",
    ),
    Code.WORKERS_FAILED: (
        "its training workers failed while {phase} (exit status {status}) after {restarts} restarts",
        "the silo's log has the detail",
    ),
    Code.UPDATE_NOT_FINITE: ("its update holds values that are not finite", "lower the learning rate"),
    Code.UPDATE_TOO_LARGE: ("its update's norm is above the limit of the spec", "lower the learning rate"),
    Code.MESSAGE_INVALID: ("it could not read the server's message", "check that both run the same version"),
    Code.NOT_JOINED: ("it has lost what it knew of this run", "it is asked to join again by itself"),
    Code.NO_ANSWER: ("it did not answer in time", "it takes part again as soon as it calls"),
    Code.DISK_FULL: ("its disk is full", "make room at the silo; the silo's log has the detail"),
    Code.REVOKED: ("it was revoked", "fedplat silo invite NAME to let it back in"),
    Code.MASKING_STATE: (
        "its keys of this epoch are gone, or of another ({rule!r})",
        "a new epoch with fresh keys from every silo begins by itself",
    ),
    Code.MASKING_REFUSED: ("it refuses, for secure aggregation ({rule!r})", "see docs/threat-model.md"),
    Code.PRIVACY: (
        "it cannot train this privately",
        "the silo's log says which part of the spec, task or model rules it out",
    ),
    Code.LEDGER: ("its privacy ledger cannot be used", "the silo's log has the detail"),
    Code.LEDGER_BEHIND: (
        "its privacy ledger lacks entries that were made: an old copy was restored",
        "at the silo: fedplat client budget reconcile",
    ),
    Code.LEDGER_DAMAGED: (
        "its privacy ledger is not as it was written",
        "at the silo: fedplat client budget verify",
    ),
    Code.BUDGET_EXCEEDED: (
        "it does not fit into the privacy budget of its dataset {dataset!r}: epsilon would reach {total} of {budget}"
        " at delta {delta} (spent {spent}, with other open runs {committed}; this alone {asked})",
        "plan fewer rounds or more noise; the silo's privacy officer sets the budget: fedplat client budget set",
    ),
    Code.RUN_UNPROTECTED: (
        "its dataset has a privacy budget, and this run would release what no budget counts",
        "set [privacy] mode and unit in the spec; the silo's log says what is missing",
    ),
    Code.APPROVAL_PENDING: (
        "somebody there has to agree to this run first",
        "at the silo: fedplat client runs pending, then fedplat client approve RUN",
    ),
    Code.APPROVAL_REFUSED: ("somebody there has refused this run", "ask the silo's administrator why"),
    Code.OUTSIDE_HOURS: (
        "it trains at other hours only",
        "it takes part again by itself; allowed_hours in its policy.toml",
    ),
    Code.INTERNAL: ("something unforeseen failed while {phase}", "the silo's log has the detail"),
}


_REFUSALS = frozenset(map(str, Refusal))
# Refusals that end with fresh keys; all others end with a person.
_NEW_EPOCH = frozenset(
    {Refusal.EPOCH_CLOSED, Refusal.ROSTER_MISSING, Refusal.STEP_CLOSED, Refusal.STEP_JUMP, Refusal.STEP_UNKNOWN}
)

# The silo is well and will say another thing later: it is asked again.
LATER = frozenset({Code.BUSY, Code.PAUSED, Code.NOT_JOINED, Code.APPROVAL_PENDING, Code.OUTSIDE_HOURS})

# What can get better with the same spec: by itself, or by what a person does at the silo.
PASSING = LATER | {
    Code.STOPPED,
    Code.NO_ANSWER,
    Code.REVOKED,
    Code.DATASET_UNKNOWN,
    Code.DATASET_UNREADABLE,
    Code.WORKERS_FAILED,
    Code.DISK_FULL,
    Code.MASKING_STATE,
    Code.MASKING_REFUSED,
    Code.LEDGER,
    Code.LEDGER_BEHIND,
    Code.LEDGER_DAMAGED,
    Code.INTERNAL,
}


class Reason(BaseModel):
    """A code and its parameters; `str()` is the sentence, `hint` what to do next."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: Code
    words: dict[Word, Word | Number] = Field(default_factory=dict, max_length=8)

    @classmethod
    def of(cls, code: Code, **words: str | int) -> Self:
        """`Reason.of(Code.COLUMN_MISSING, column="age")`."""
        return cls(code=code, words=dict(words))

    @classmethod
    def of_refusal(cls, refusal: Refusal) -> Self:
        """A rule of secure aggregation that a silo insists on."""
        code = Code.MASKING_STATE if refusal in _NEW_EPOCH else Code.MASKING_REFUSED
        return cls.of(code, rule=refusal.value)

    def __str__(self) -> str:
        return self._render(self._sentences[0])

    @property
    def hint(self) -> str:
        """What to do next."""
        return self._render(self._sentences[1])

    @property
    def _sentences(self) -> tuple[str, str]:
        rule = self.words.get("rule")
        if self.code is Code.MASKING_REFUSED and rule in _REFUSALS:
            what, hint = describe(Refusal(rule))
            return f"it refuses, for secure aggregation: {what}", hint
        return _TEXT[self.code]

    def _render(self, template: str) -> str:
        # Words come from the other side: they are put in as they are, in one pass, never interpreted as a format.
        def word(match: re.Match[str]) -> str:
            value = self.words.get(match[1], "?")
            return repr(value) if match[2] else str(value)

        return _WORD.sub(word, template)
