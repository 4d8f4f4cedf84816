"""A silo that only keeps its ledger. As a process it forks silos that die before each of their writes, and restarts
each once:

    python -m tests.support.ledger_silo FOLDER

It prints a JSON object a line: before which write the silo died, how many rounds left it in all, and what its book says
at the end.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import count
from pathlib import Path

from fedplat.home import SiloHome
from fedplat_silo.ledger import begin_book, call_the_roll, receipts, rules, verify_book
from tests.support.dying_sqlite import Death
from tests.unit.ledger.scene import SILO, quick_epsilon, reserve, steps, write_patients

NUM_ROUNDS = 2
STEPS = 2
BUDGET = 20
NEVER = 1_000_000


def live(home: SiloHome) -> None:
    """The same from the beginning every time, but for the rounds that have left."""
    book = begin_book(home)
    book.register("heart", call_the_roll(home.root / "heart.csv", "heart", "pid", book.key))
    state = book.look()
    if not state.budgets(state.populations()[0]):
        book.set_budget("heart", epsilon=BUDGET, delta=1e-5, unit="patient")
    reserve(book, "r-1", steps(STEPS * NUM_ROUNDS))
    for number in range(num_released(home) + 1, NUM_ROUNDS + 1):
        book.spend("r-1", number, f"{number}-{os.getpid()}", [steps(STEPS)])  # trained anew, with other noise
        with (home.root / "released").open("a") as left:
            left.write("x")
    book.close("r-1")


def num_released(home: SiloHome) -> int:
    """Rounds that have left the silo."""
    path = home.root / "released"
    return len(path.read_text()) if path.exists() else 0


def in_a_process(home: SiloHome, at: int) -> int:
    """Lives until write `at`; returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        Death(at)
        live(home)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the silo failed at write {at}"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(folder: Path) -> None:
    """One silo a write, until one gets through."""
    for module in (rules, receipts):
        vars(module)["epsilon"] = quick_epsilon
    for at in count():
        home = SiloHome(folder / str(at), SILO)
        home.create()
        write_patients(home.root / "heart.csv", range(5))
        died = in_a_process(home, at)
        released_before = num_released(home)
        in_a_process(home, NEVER)
        state = begin_book(home).look()
        said = {
            "at": at,
            "died": died,
            "released_before": released_before,
            "released": num_released(home),
            "charged": state.spent(state.populations()[0]).total(),
            "committed": state.committed(state.populations()[0]).total(),
            "entries": verify_book(home).num_entries,
        }
        print(json.dumps(said), flush=True)
        if not died:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
