"""What people and programs see of silos and runs: plain dictionaries, and sentences where a person reads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from enum import Enum
from typing import TypeAlias

from fedplat.identity import show_fingerprint
from fedplat_server.checkpoints import CheckpointError, Checkpoints
from fedplat_server.driver import RunLive
from fedplat_server.registry import Registry
from fedplat_server.road import Transfer
from fedplat_server.store import Run, RunSilo, Silo, Store
from fedplat_server.transitions import RoundState, is_final

View: TypeAlias = dict[str, object]


def plain(value: object) -> object:
    """Times as ISO 8601, enums as their words; what JSON can carry."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def row(record: object, *without: str) -> View:
    """A frozen record of the store as a dictionary."""
    return {k: plain(v) for k, v in asdict(record).items() if k not in without}  # type: ignore[call-overload]


def silo_view(silo: Silo, registry: Registry) -> View:
    """A silo with its presence."""
    view = row(silo, "public_key_pem", "node_id")
    view["fingerprint_shown"] = show_fingerprint(silo.fingerprint)
    view["connected"] = registry.is_here(silo.name)
    return view


def run_line(run: Run) -> View:
    """A run in a list."""
    return row(run, "spec", "layout", "flower_run_id", "weights_path")


def run_view(run: Run, store: Store) -> View:
    """A run with its rounds, figures and silos."""
    view = row(run, "layout", "flower_run_id")
    view["layout_fingerprint"] = (run.layout or {}).get("fingerprint")
    view["rounds"] = _rounds(run, store)
    view["evaluations"] = [row(e) for e in store.rounds.evaluations(run.id)]
    view["silos"] = [row(s, "run_id") for s in store.runs.silos(run.id)]
    view["silo_rounds"] = [row(s, "run_id") for s in store.rounds.silo_rounds(run.id)]
    view["ledgers"] = _ledgers(run, store)
    view["secure_steps"] = [row(s, "run_id") for s in store.secure.steps(run.id)]
    return view


def _ledgers(run: Run, store: Store) -> list[View]:
    """What the patients of the run's dataset were charged in all, as each silo has last signed it."""
    data = run.spec.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    kept = store.ledgers.of([s.silo_name for s in store.runs.silos(run.id)])
    hidden = ("statement", "signature", "fingerprint", "countersignature", "countersigned_head")
    return [row(one, *hidden) for one in kept if one.dataset == name]


def ledgers_view(store: Store, silos: Sequence[Silo]) -> View:
    """What these silos have signed of their ledgers, and which runs used their data: what reports are made from."""
    names = [silo.name for silo in silos]
    return {
        "silos": {silo.name: row(silo, "name", "node_id") for silo in silos},
        "statements": [row(one) for one in store.ledgers.of(names)],
        "releases": [row(one) for one in store.ledgers.releases(names)],
        "runs": [_use(run, store) for run in store.runs.list()],
    }


def _use(run: Run, store: Store) -> View:
    """Whose data a run used: of each silo, the rounds whose aggregate it is in."""
    rounds: dict[str, list[int]] = {}
    for done in store.rounds.list(run.id):
        for silo in done.cohort if done.state == RoundState.COMMITTED else ():
            rounds.setdefault(silo, []).append(done.number)
    return {"id": run.id, "spec": run.spec, "rounds": rounds}


def _rounds(run: Run, store: Store) -> list[View]:
    """The rounds, each with the run's silos that are not in its aggregate."""
    members = [s.silo_name for s in store.runs.silos(run.id) if s.state in ("accepted", "away")]
    return [
        row(r, "run_id") | {"without": [m for m in members if m not in r.cohort] if r.cohort else []}
        for r in store.rounds.list(run.id)
    ]


def checkpoint_view(folder: Checkpoints, number: int) -> View:
    """A checkpoint of a run."""
    try:
        manifest = folder.load(number).manifest
    except CheckpointError as error:
        return {"round": number, "good": False, "problem": error.message}
    return {
        "round": number,
        "good": True,
        "created_at": plain(manifest.created_at),
        "size_bytes": manifest.size_bytes,
        "sha256": manifest.sha256,
    }


def snapshot(
    run: Run, live: RunLive | None, store: Store, registry: Registry, transfers: Sequence[Transfer] = ()
) -> View:
    """What `run watch` draws: the run, its figures so far, and every silo in words."""
    view = run_line(run)
    view["final"] = is_final(run.state)
    view["rounds"] = _rounds(run, store)
    view["evaluations"] = [row(e) for e in store.rounds.evaluations(run.id)]
    view["activity"] = live.activity if live else ""
    view["round"] = live.round if live else run.rounds_committed
    silos = store.runs.silos(run.id)
    view["silos"] = [{"name": s.silo_name, "words": silo_words(s, live, registry, run.id)} for s in silos]
    moving = {t.silo: t for t in transfers if t.is_moving}
    for silo in view["silos"]:  # type: ignore[attr-defined]
        if silo["name"] in moving:
            silo |= _transfer(moving[silo["name"]])
    answered = {s.silo_name for s in silos}
    for name in live.waiting_for if live else ():
        if name not in answered:
            view["silos"].append({"name": name, "words": waiting_words(name, live, registry, run.id)})  # type: ignore[attr-defined,arg-type]
    return view


def _transfer(transfer: Transfer) -> View:
    """Bytes, rate and time left, for programs and in words."""
    done, total, rate = transfer.done_bytes, transfer.total_bytes, transfer.bytes_per_s
    left_s = transfer.left_s
    verb = "sending" if transfer.upload else "receiving"
    left = "" if left_s is None else f", {left_s:.0f} s left"
    return {
        "words": f"{verb} {done / 1e6:.0f} of {total / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s{left}",
        "transfer": {
            "direction": "up" if transfer.upload else "down",
            "done_bytes": done,
            "total_bytes": total,
            "bytes_per_s": rate,
            "left_s": left_s,
        },
    }


def silo_words(silo: RunSilo, live: RunLive | None, registry: Registry, run_id: str) -> str:
    """What one silo is doing in a run, in words."""
    name = silo.silo_name
    if silo.state in ("refused", "left"):
        text = (silo.reason or {}).get("text", silo.state)
        hint = (silo.reason or {}).get("hint")
        return f"refused: {text}" + (f" ({hint})" if hint else "")
    if live is None:
        return "done"
    if silo.state == "away" and silo.reason_code != "no_answer":
        return f"away: {(silo.reason or {}).get('text')} ({(silo.reason or {}).get('hint')})"
    if name in live.waiting_for:
        return waiting_words(name, live, registry, run_id)
    if silo.state == "away":
        return f"away{_last_seen(registry, name)}; takes part again as soon as it calls"
    return "waiting for the others" if live.waiting_for else "waiting"


def waiting_words(name: str, live: RunLive, registry: Registry, run_id: str) -> str:
    """What the run waits for at one silo, and what happens next."""
    progress = registry.progress(name, run_id)
    if registry.is_here(name):
        if progress is None or progress.round < live.round:
            return "connected"
        share = f", {progress.share:.0%}" if progress.share > 0 else ""
        return f"{progress.phase.value}{share}"
    return f"waiting for it{_last_seen(registry, name)}; {_next(live)}"


def _last_seen(registry: Registry, name: str) -> str:
    away_s = registry.away_s(name)
    return ", not seen since the server started" if away_s is None else f", last seen {away_s:.0f} s ago"


def _next(live: RunLive) -> str:
    waited_s = time.monotonic() - live.since_s
    if live.have >= live.minimum:
        left_s = max(0.0, live.goes_on_after_s - waited_s)
        return f"goes on with {live.have} of {live.have + len(live.waiting_for)} in {left_s:.0f} s"
    left_s = max(0.0, live.gives_up_after_s - waited_s)
    return f"{live.have} of at least {live.minimum} are there; gives up in {left_s:.0f} s"
