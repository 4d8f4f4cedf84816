"""What a person reads on the server's side: the start, lists, and the live view of a run."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from logging.handlers import RotatingFileHandler
from typing import Any

import click

from fedplat.home import ServerHome, fedplat_home
from fedplat_server.adminclient import connect
from fedplat_server.heap import share_heap

View = dict[str, Any]
POLL_S = 0.5
_FIGURES = ("loss", "accuracy", "precision", "recall", "f1", "mae", "rmse", "r2", "auroc")


def run_server(home: str | None, given: dict[str, object]) -> None:
    """Start and serve; says what was made and what to do next."""
    share_heap()
    server_home = ServerHome(fedplat_home(home))
    first = not server_home.ca.exists()
    server_home.create()
    _log_to(server_home)
    from fedplat_server.app import ServerParts, serve

    def announce(parts: ServerParts, resumed: list[str]) -> None:
        settings = parts.settings
        click.echo(f"fedplat server at {settings.address} (listening on {settings.host}:{settings.port}, TLS)")
        click.echo(f"  home      {server_home.path}")
        click.echo(f"  CA        {parts.admin.identity.ca_fingerprint}")
        click.echo(f"  database  {parts.store}")
        if first:
            click.echo("First start: made a private CA, a certificate and the database. Next, in another shell:")
            click.echo("  fedplat silo invite hospital-a     prints one line; hand it to the hospital")
            click.echo("  fedplat run init > study.toml      writes a run spec to edit")
            click.echo("  fedplat run submit study.toml --watch")
        for run_id in resumed:
            click.echo(f"Going on with run {run_id}")
        sys.stdout.flush()

    serve(server_home, given, announce)
    click.echo("fedplat server stopped")


def _log_to(home: ServerHome) -> None:
    path = home.path / "server.log"
    path.touch(mode=0o600)
    handler = RotatingFileHandler(path, maxBytes=10_000_000, backupCount=3)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _table(rows: Iterable[Sequence[object]], head: Sequence[str]) -> str:
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def silos_text(silos: list[View]) -> str:
    """`fedplat silo list`."""
    if not silos:
        return "no silo is enrolled; fedplat silo invite NAME prints an invite"
    rows = ((s["name"], _presence(s), (s["last_seen_at"] or "never")[:19], s["fingerprint"][:16]) for s in silos)
    return _table(rows, ("silo", "state", "last seen (UTC)", "key fingerprint"))


def _presence(silo: View) -> str:
    return str(silo["state"]) if silo["state"] != "enrolled" else "connected" if silo["connected"] else "away"


def silo_text(silo: View) -> str:
    """`fedplat silo show`."""
    lines = [f"silo {silo['name']}: {_presence(silo)}", f"  enrolled     {silo['enrolled_at'][:19]}"]
    lines += [f"  fingerprint  {silo['fingerprint_shown']}"]
    for invite in silo["invites"]:
        end = invite["used_at"] or invite["cancelled_at"]
        word = "used" if invite["used_at"] else "cancelled" if invite["cancelled_at"] else "open until"
        lines.append(f"  invite       {invite['kind']}, {word} {(end or invite['expires_at'])[:19]}")
    return "\n".join(lines)


def runs_text(runs: list[View]) -> str:
    """`fedplat run list`."""
    if not runs:
        return "no runs yet; fedplat run init > study.toml writes a spec"
    rows = (
        (r["id"], r["state"], f"{r['rounds_committed']}/{r['rounds_planned']}", r["created_at"][:19], r["reason"] or "")
        for r in runs
    )
    return _table(rows, ("run", "state", "rounds", "created (UTC)", "why"))


def checkpoints_text(checkpoints: list[View]) -> str:
    """`fedplat run checkpoints`."""
    if not checkpoints:
        return "no checkpoints yet"
    rows = ((c["round"], "good", c["sha256"][:16], c["size_bytes"]) for c in checkpoints if c["good"])
    damaged = [f"round {c['round']} is damaged: {c['problem']}" for c in checkpoints if not c["good"]]
    return "\n".join([_table(rows, ("round", "state", "sha256", "bytes")), *damaged])


def submitted_text(run: View) -> str:
    """`fedplat run submit`."""
    return f"run {run['id']} (spec {run['spec_hash']})\n  fedplat run watch {run['id']}"


def run_text(run: View) -> str:
    """`fedplat run show`."""
    lines = [f"run {run['id']}: {run['state']}" + (f" ({run['reason']})" if run["reason"] else "")]
    lines += [f"  spec {run['spec_hash']}", f"  rounds {run['rounds_committed']} of {run['rounds_planned']}", ""]
    lines.append(_table(map(_silo_row, run["silos"]), ("silo", "state", "examples", "note")))
    lines += ["", *round_lines(run), *_absence_lines(run)]
    lines += [*_secure_lines(run["secure_steps"]), *_ledger_lines(run)]
    return "\n".join(lines)


def _absence_lines(run: View) -> list[str]:
    """Why a silo was not in a round: the newest of each silo's reasons."""
    newest = {p["silo_name"]: p for p in run["silo_rounds"] if (p["reason"] or {}).get("text")}
    lines = [
        f"  {silo}, round {part['round_number']}: {part['reason']['text']}"
        + (f" ({part['reason']['hint']})" if part["reason"].get("hint") else "")
        for silo, part in sorted(newest.items())
    ]
    return ["", "left out, the last time each:", *lines] if lines else []


def _secure_lines(steps: list[View]) -> list[str]:
    """How the sum of each masked step was opened."""
    if not steps:
        return []
    head = ("round", "in the sum", "dropped", "opened by", "may collude", "confirmed", "mask s", "agree s", "unmask s")
    rows = _table(map(_secure_row, steps), head)
    return ["", "secure aggregation: the server sees sums, and no single update", rows]


def _ledger_lines(run: View) -> list[str]:
    """What each silo's patients were charged, where anything protects or limits them."""
    is_private = run["spec"]["privacy"]["mode"] != "none"
    rows = [_ledger_row(one) for one in run["ledgers"] if is_private or one["budget"] is not None]
    if not rows:
        return []
    head = ("silo", "epsilon spent", "of", "delta", "for each", "last signed (UTC)")
    return ["", "privacy: of all runs on these patients, as each silo's ledger says", _table(rows, head)]


def _ledger_row(one: View) -> Sequence[object]:
    spent = "no bound" if one["epsilon"] is None else f"{one['epsilon']:.3f}"
    budget = "no budget" if one["budget"] is None else f"{one['budget']:g}"
    return one["silo_name"], spent, budget, f"{one['delta']:g}", one["unit"], one["at"][:19]


def _secure_row(step: View) -> Sequence[object]:
    silos, cohort = step["silos"], step["cohort"]
    seconds = (step[f"seconds_{phase}"] for phase in ("masking", "agreeing", "unmasking"))
    return (
        "closing" if step["closing"] else step["round_number"],
        "not opened" if cohort is None else f"{len(cohort)} of {len(silos)} silos",
        ", ".join(step["dropped"] or ()) or "-",
        f"{step['threshold']} of them",
        step["colluders_tolerated"],
        "-" if step["num_confirmed"] is None else f"{step['num_confirmed']} of {len(silos) - 1} peers",
        *("-" if value is None else f"{value:.2f}" for value in seconds),
    )


def _silo_row(silo: View) -> Sequence[object]:
    notes = [w["text"] for w in silo["info"].get("warnings", [])]
    reason = (silo["reason"] or {}).get("text")
    examples = "" if silo["num_examples"] is None else silo["num_examples"]
    return silo["silo_name"], silo["state"], examples, "; ".join([reason] if reason else notes)


def round_lines(run: View) -> list[str]:
    """A line for each committed round: its cohort, and the test figures of its weights as soon as they are known."""
    tests = {e["round_number"]: e for e in run["evaluations"] if e["split"] == "test"}
    lines = [_figures("initial weights", tests[0])] if 0 in tests else []
    for done in run["rounds"]:
        if done["state"] == "committed":
            head = f"round {done['number']:>3}  {done['seconds']:6.2f} s  {len(done['cohort'])} silos"
            head += f" (without {', '.join(done['without'])})" if done["without"] else ""
            lines.append(_figures(head, tests.get(done["number"])))
    return lines


def _figures(head: str, test: View | None) -> str:
    if test is None:
        return f"{head}  (measured with the next round)"
    figures = {"loss": test["loss"], **test["metrics"]}
    shown = "  ".join(f"{k} {figures[k]:.4f}" for k in _FIGURES if figures.get(k) is not None)
    bound = figures.get("auroc_bound")
    return f"{head}  {shown}" + (f" (+- {bound:.4f})" if bound is not None else "")


def watch_run(home: str | None, run_id: str, *, as_json: bool) -> int:
    """Follow a run. Returns 0 if it finished, 1 if it failed or was stopped."""
    with connect(home) as admin:
        return _watch_json(admin, run_id) if as_json else _watch_live(admin, run_id)


def _watch_json(admin: Any, run_id: str) -> int:
    last = ""
    while True:
        view = admin.get(f"/runs/{run_id}/snapshot")
        text = json.dumps(view, ensure_ascii=False)
        if text != last:
            click.echo(text)
            last = text
        if view["final"]:
            return int(view["state"] != "finished")
        time.sleep(POLL_S)


def _watch_live(admin: Any, run_id: str) -> int:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, soft_wrap=True)
    printed = 0
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            view: View = admin.get(f"/runs/{run_id}/snapshot")
            lines = round_lines(view)
            # The newest line waits for its figures, which come with the next round.
            ready = len(lines) if view["final"] else max(printed, len(lines) - 1)
            for line in lines[printed:ready]:
                console.print(line, markup=False)
            printed = ready
            if view["final"]:
                break
            live.update(_status(view))
            time.sleep(POLL_S)
    console.print(_ending(view), markup=False)
    return int(view["state"] != "finished")


def _status(view: View) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    done, planned = view["rounds_committed"], view["rounds_planned"]
    head = f"{view['id']}: {view['state']}, round {min(view['round'], planned)} of {planned}"
    silos = [Text(f"  {s['name']}: {s['words']}") for s in view["silos"]]
    return Group(Text(head), ProgressBar(total=planned, completed=done, width=60), *silos)


def _ending(view: View) -> str:
    lines = [f"  {s['name']}: {s['words']}" for s in view["silos"] if s["words"].startswith("refused")]
    why = f": {view['reason']}" if view["reason"] else ""
    lines.append(f"run {view['id']} {view['state']} after {view['rounds_committed']} rounds{why}")
    if view["rounds_committed"]:
        lines.append(f"  fedplat run export {view['id']}   writes the model and its figures")
    return "\n".join(lines)
