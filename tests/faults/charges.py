"""What a campaign of private runs has cost each silo's patients, by its ledger, beside what the server has got."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedplat.home import SiloHome
from fedplat.privacy import epsilon
from fedplat_silo.ledger import find_book
from fedplat_silo.ledger.state import RunBook, events_of
from tests.faults.campaign import DELTA, SILOS, Kill
from tests.support.federation import Federation, wait_until

BUDGET = 1000.0
"""Never reached: it makes the ledger check every release."""


@dataclass(frozen=True)
class Charge:
    """One silo's steps in one run. `due`: in rounds whose sum has its update, by the server's tables; `charged`: by its
    ledger; `repeats`: how often it was charged for a round that it had been charged for."""

    due: int
    charged: int
    repeats: int


def set_budgets(fed: Federation) -> None:
    """At every silo."""
    limits = ("--epsilon", str(BUDGET), "--delta", str(DELTA))
    for silo in SILOS:
        _client(fed, silo, "budget", "set", "--dataset", "table", *limits)


def ledger_figures(
    fed: Federation, views: Sequence[Mapping[str, Any]], steps: int, kills: Sequence[Kill]
) -> dict[str, Any]:
    """`ledger_under`: who was charged less than was released, in which run. `ledger_over_unexplained`: who was charged
    more than that and its repeats, or for more repeats than there were kills that make a round be trained again.
    `repeats_charged`: all of them. `ledger_damaged`: books that do not verify, or whose epsilon is below the truth.
    """
    found = {(silo, str(view["id"])): charge(fed, silo, view, steps) for silo in SILOS for view in views}
    repeats = {silo: sum(c.repeats for (name, _), c in found.items() if name == silo) for silo in SILOS}
    hits = {silo: sum(kill.target in (silo, "worker", "server") for kill in kills) for silo in SILOS}
    over = [f"{where}: {c}" for where, c in found.items() if c.charged > c.due + steps * c.repeats]
    return {
        "ledger_under": [f"{where}: {c}" for where, c in found.items() if c.charged < c.due],
        "ledger_over_unexplained": over + [silo for silo in SILOS if repeats[silo] > hits[silo]],
        "repeats_charged": sum(repeats.values()),
        "ledger_damaged": [silo for silo in SILOS if not _is_sound(fed, silo, found)],
        "ledger_steps": sum(c.charged for c in found.values()),
    }


def charge(fed: Federation, silo: str, view: Mapping[str, Any], steps: int) -> Charge:
    """The server's rows of a run beside the silo's page."""
    page = _page(fed, silo, view["id"])
    done = [r["number"] for r in view["rounds"] if r["state"] == "committed" and silo in r["cohort"]]
    rounds = Counter(number for number, _ in page.spends)
    return Charge(steps * len(done), page.spent.total(), rounds.total() - len(rounds))


def _page(fed: Federation, silo: str, run: str) -> RunBook:
    """Closed: a silo hears of the end a moment later."""
    book = find_book(SiloHome(fed.folder / "silos", silo))
    wait_until(lambda: not book.look().runs[run].is_open, 60, fed.all_logs)
    return book.look().runs[run]


def _is_sound(fed: Federation, silo: str, found: Mapping[tuple[str, str], Charge]) -> bool:
    if not _client(fed, silo, "budget", "verify")["whole"]:
        return False
    [overview] = _client(fed, silo, "budget", "show")
    [one] = events_of(next(iter(find_book(SiloHome(fed.folder / "silos", silo)).look().runs.values())).planned)
    due = replace(one, num_steps=sum(c.due for (name, _), c in found.items() if name == silo))
    return bool(overview["spent"] >= epsilon([due], delta=DELTA))


def _client(fed: Federation, silo: str, *words: str) -> Any:
    told = fed.command("client", *words, "--silo", silo, "--home", str(fed.folder / "silos"), "--json", check=False)
    return json.loads(told)
