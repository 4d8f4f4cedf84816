"""How a run went, as a document: training curves, time, who took part and why not, the spec."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from fedplat.errors import ConflictError
from fedplat.report.document import Chapter, Document, Row, Table, pairs
from fedplat.report.html import as_html
from fedplat.report.markdown import as_markdown
from fedplat.report.rendering import as_pdf, indented
from fedplat.report.table import csv_text
from fedplat_server.reports.curves import curves, numbers
from fedplat_server.reports.timing import time_chapter

View = Mapping[str, Any]
_SPLITS = {"test": "test", "train": "training"}
_LINE = 106  # as many as a page of A4 takes
_CSV = ("round", "silo", "state", "in_the_sum", "reason", "num_examples", "seconds_waiting", "seconds_training")
_CSV_MORE = ("seconds_evaluating", "seconds_communicating", "samples_per_second", "bytes_down", "bytes_up", "restarts")


def run_report(view: View, form: str) -> bytes:
    """`view`: what the server answers about a run; `form`: html, pdf, md, json or csv."""
    if form == "json":
        return indented(view).encode()
    if form == "csv":
        return _csv(view).encode()
    if form == "pdf":
        return as_pdf(run_document(view))
    return (as_html if form == "html" else as_markdown)(run_document(view)).encode()


def run_document(view: View) -> Document:
    """The whole report. Raises ConflictError if there is nothing to tell yet."""
    if not view["silos"]:
        raise ConflictError(f"no silo has answered run {view['id']} yet", hint=f"fedplat run watch {view['id']}")
    done, planned = view["rounds_committed"], view["rounds_planned"]
    ended = f"{view['state']}" + (f": {view['reason']}" if view["reason"] else "")
    return Document(
        title=f"Run {view['id']}",
        description=f"Study {view['name']}, spec {view['spec_hash'][:16]}. Begun {_at(view['created_at'])} UTC.",
        headlines=(f"{ended[:1].upper()}{ended[1:]}. {done} of {planned} rounds.", *_best(view)),
        lines=(_privacy(view),),
        alarms=(),
        figures=tuple(curves(view)),
        chapters=tuple(_chapters(view)),
    )


def _privacy(view: View) -> str:
    if view["spec"]["privacy"]["mode"] == "none":
        return "The run has no differential privacy: nothing bounds what its model tells about one patient."
    told = "What its model, and all else that left the silos, tells about one patient is in another report, signed:"
    return f"{told} fedplat report privacy --run {view['id']}"


def _best(view: View) -> Iterator[str]:
    """The last figures of the test records."""
    tests = [e for e in view["evaluations"] if e["split"] == "test"]
    if tests:
        last = tests[-1]
        shown = ", ".join(f"{name} {value:.4f}" for name, value in numbers(last).items())
        yield f"On the test records of {len(last['silos'])} silos, after round {last['round_number']}: {shown}."


def _chapters(view: View) -> Iterator[Chapter]:
    yield _figures(view)
    yield _rounds(view)
    yield _silos(view)
    yield time_chapter(view)
    if view["secure_steps"]:
        yield _masking(view)
    yield Chapter(
        "The spec",
        text=f"SHA-256 of its canonical form: {view['spec_hash']}.",
        verbatim=_laid_out(view["spec"]),
    )


def _figures(view: View) -> Chapter:
    names = list(dict.fromkeys(name for one in view["evaluations"] for name in numbers(one)))
    rows = [
        (
            str(one["round_number"]),
            _SPLITS[one["split"]],
            str(len(one["silos"])),
            "" if one["num_examples"] is None else str(one["num_examples"]),
            *(f"{numbers(one)[name]:.4f}" if name in numbers(one) else "" for name in names),
        )
        for one in sorted(view["evaluations"], key=lambda e: (e["split"], e["round_number"]))
    ]
    text = "Of the weights after each round, over all records together; round 0: the first weights."
    if "divergence" in names:
        text += " Divergence: 1 where all silos' updates point the same way, 0 where they cancel out."
    table = Table(("Round", "Records", "Silos", "How many", *names), tuple(rows))
    return Chapter("Figures", text=text if rows else "None left the silos.", tables=(table,) if rows else ())


def _rounds(view: View) -> Chapter:
    reasons = {(p["round_number"], p["silo_name"]): (p["reason"] or {}).get("text", "") for p in view["silo_rounds"]}
    rows: list[Row] = []
    for one in view["rounds"]:
        number = one["number"]
        left_out = [
            f"{silo} ({reason})" if (reason := reasons.get((number, silo), "not asked")) else silo
            for silo in one["without"]
        ]
        seconds = "" if one["seconds"] is None else f"{one['seconds']:.2f}"
        norm = "" if one["update_norm"] is None else f"{one['update_norm']:.4g}"
        took_part = f"{len(one['cohort'])}: {', '.join(one['cohort'])}" if one["cohort"] else "none"
        rows.append((str(number), one["state"], seconds, took_part, "; ".join(left_out) or "-", norm))
    head = ("Round", "State", "Seconds", "In the sum", "Left out, and why", "Norm of the mean update")
    return Chapter("Round by round", tables=(Table(head, tuple(rows)),) if rows else (), text="" if rows else "None.")


def _silos(view: View) -> Chapter:
    rows = []
    for one in view["silos"]:
        reason = one["reason"] or {}
        notes = [warning["text"] for warning in one["info"].get("warnings", [])]
        why = " ".join(filter(None, [reason.get("text"), reason.get("hint")])) or "; ".join(notes)
        examples = "" if one["num_examples"] is None else str(one["num_examples"])
        num_rounds = sum(one["silo_name"] in done["cohort"] for done in view["rounds"])
        rows.append((one["silo_name"], one["state"], str(num_rounds), examples, why))
    return Chapter("Silos", tables=(Table(("Silo", "State", "Rounds", "Training records", "Note"), tuple(rows)),))


def _masking(view: View) -> Chapter:
    steps = view["secure_steps"]
    opened = [step for step in steps if step["cohort"] is not None]
    worst = min((step["colluders_tolerated"] for step in opened), default=0)
    rows = [
        ("Steps", f"{len(steps)}, of which {len(opened)} had a cohort"),
        ("Silos in the smallest sum", str(min((len(step["cohort"]) for step in opened), default=0))),
        ("May side with the server and learn no single update", f"{worst} silos, in the worst step"),
    ]
    text = "The server saw sums over silos, and no single update."
    return Chapter("Secure aggregation", text=text, tables=(pairs(rows),))


def _csv(view: View) -> str:
    cohorts = {one["number"]: one["cohort"] for one in view["rounds"]}
    rows = []
    for part in view["silo_rounds"]:
        number, silo = part["round_number"], part["silo_name"]
        first = (number, silo, part["state"], int(silo in cohorts.get(number, ())), part["reason_code"] or "")
        rest = (part[name] for name in (*_CSV[5:], *_CSV_MORE))
        rows.append((*first, *("" if value is None else value for value in rest)))
    return csv_text((*_CSV, *_CSV_MORE), rows)


def _laid_out(value: object, depth: int = 0, name: str = "") -> str:
    """JSON that has on one line whatever fits there."""
    line = name + json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value or 2 * depth + len(line) <= _LINE:
        return line
    named = (
        [(f"{json.dumps(k)}: ", v) for k, v in value.items()] if isinstance(value, dict) else [("", v) for v in value]
    )
    rows = ",\n".join("  " * (depth + 1) + _laid_out(one, depth + 1, key) for key, one in named)
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{name}{begin}\n{rows}\n{'  ' * depth}{end}"


def _at(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"
