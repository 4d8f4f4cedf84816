"""What silos have signed: the last word of each population, and every release."""

from __future__ import annotations

from collections.abc import Callable

from fedplat.ledger import Deed, SignedStatement, Statement
from fedplat_server.store import Store
from tests.unit.report.federation_scene import KEYS, statement
from tests.unit.report.scene import steps

SILO = next(iter(KEYS))


def keep(store: Store, signed: SignedStatement) -> None:
    told = Statement.model_validate_json(signed.statement)
    store.ledgers.keep(told, signed, fingerprint="f" * 64, countersigned=None)


def test_releases_stay_when_later_statements_come(store: Store, enrol: Callable[..., None]) -> None:
    enrol(SILO)
    said = [
        statement(SILO, Deed.RESERVED, [], seq=1),
        statement(SILO, Deed.SPENT, [steps(10)], [steps(10)], seq=2),
        statement(SILO, Deed.SPENT, [steps(30)], [steps(20)], seq=3),
        statement(SILO, Deed.CLOSED, [steps(30)], seq=4),
    ]
    for place in (0, 2, 3, 1, 1):  # late, and twice
        keep(store, said[place])
    [last] = store.ledgers.of([SILO])
    assert last.seq == 4
    kept = store.ledgers.releases([SILO])
    assert [(one.seq, one.run_id, one.statement) for one in kept] == [(n, "r-2", said[n - 1].statement) for n in (2, 3)]
    assert store.ledgers.releases(["hospital-z"]) == []
