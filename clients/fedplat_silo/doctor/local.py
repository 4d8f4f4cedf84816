"""Checks of a silo's home: files, keys, policy, ledger, datasets, and the process that works in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fedplat.doctor import Check, Finding, failed, ok, warning
from fedplat.doctor.machine import check_home, check_private, check_space, check_speed
from fedplat.errors import NotFoundError
from fedplat.identity import load_public, show_fingerprint
from fedplat_silo.data.exclusion import exclusion_file, read_exclusion
from fedplat_silo.doctor.visit import Visit
from fedplat_silo.ledger import verify_book
from fedplat_silo.status import is_paused

_HOME = ("home",)


def checks(visit: Visit) -> Iterator[Check]:
    """In the order in which a silo needs these things."""
    path = visit.home.path
    yield Check("home", lambda: _home(visit))
    yield Check("files", lambda: check_private(path, _secrets(visit)), _HOME)
    yield Check("disk space", lambda: check_space(path), _HOME)
    yield Check("disk speed", lambda: check_speed(path), _HOME)
    yield Check("enrolment", lambda: _enrolment(visit), _HOME)
    yield Check("process", lambda: _process(visit), _HOME)
    yield Check("policy", lambda: _policy(visit), _HOME)
    yield Check("ledger", lambda: _ledger(visit), ("enrolment",), timeout_s=120)
    yield Check("datasets", lambda: _datasets(visit), _HOME)


def _home(visit: Visit) -> Finding:
    path = visit.home.path
    if not path.is_dir():
        there = sorted(each.name for each in path.parent.glob("*"))
        return failed(
            f"there is no silo {visit.home.name} at {path}",
            f"There are: {', '.join(there)}."
            if there
            else f"Is --home right? A new silo begins with: fedplat client join --silo {visit.home.name} --invite LINE",
        )
    return check_home(visit.home)


def _secrets(visit: Visit) -> Iterator[Path]:
    """policy.toml and datasets.toml are no secrets, and written by editors."""
    home = visit.home
    yield from (home.identity, home.spool, home.runs, exclusion_file(home), *home.path.glob("*.log*"))
    yield from home.path.glob(f"{home.ledger.stem}.*")


def _enrolment(visit: Visit) -> Finding:
    member = visit.membership
    return ok(
        f"as {member.silo} at {member.place.address}, key {show_fingerprint(member.place.key_fingerprint[:16])} ..."
    )


def _process(visit: Visit) -> Finding:
    name, status = visit.home.name, visit.status
    if is_paused(visit.home):
        return warning("the silo is paused: it takes part in nothing new", "fedplat client pause --off")
    if status is None:
        return ok(f"not running; `fedplat client join --silo {name}` starts it")
    if not status.connected:
        return warning(
            f"process {status.pid} runs and waits for the server at {status.server}", "The network checks say why."
        )
    return ok(f"process {status.pid} is connected to {status.server}")


def _policy(visit: Visit) -> Finding:
    visit.policy.check_gpus(visit.gpus)
    return ok(str(visit.home.policy) if visit.home.policy.exists() else "no policy.toml yet: the defaults hold")


def _ledger(visit: Visit) -> Finding:
    try:
        verdict = verify_book(visit.home, load_public(visit.membership.place.server_key))
    except NotFoundError:
        if visit.home.ledger.exists():
            raise
        return ok("none yet: it begins with the first run, or the first budget")
    return ok(f"{verdict.num_entries} entries, as they were written")


def _datasets(visit: Visit) -> Finding:
    known = visit.datasets
    for name, path in known.items():
        if not path.exists():
            return failed(
                f"dataset {name}: there is nothing at {path}",
                f"Bring it back, or name its place: fedplat client join --silo {visit.home.name} --data {name}=PATH",
            )
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            return failed(f"dataset {name}: this user may not read {path}", "Give the silo's user the right to read.")
    excluded = read_exclusion(exclusion_file(visit.home))
    if not known:
        return warning(
            "no dataset is known", f"fedplat client join --silo {visit.home.name} --data NAME=PATH, then again."
        )
    rest = f"; {len(excluded.ids)} patients are excluded" if excluded.ids else ""
    return ok(", ".join(f"{name}: {path}" for name, path in known.items()) + rest)
