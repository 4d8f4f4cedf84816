"""A commit may happen and its answer be lost: whoever asks again finds it done, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection

from fedplat.errors import StoreUnavailableError
from fedplat_server.store import Evaluation, RunSiloState, SiloRoundFields, Split, Store
from fedplat_server.store.session import Database
from fedplat_server.transitions import RunState, SiloRoundState

RUN, A, B = "run-1", "hospital-a", "hospital-b"
Step = Callable[[Store], object]
UPLOADED = SiloRoundState.UPLOADED

STEPS: dict[str, Step] = {
    "create": lambda s: s.runs.create(run_id=RUN, name="x", spec={}, spec_hash="5" * 64, rounds_planned=2),
    "join": lambda s: s.runs.join(
        run_id=RUN, silo_name=A, state=RunSiloState.ACCEPTED, num_examples=7, info={"a": 1, "b": float("nan")}
    ),
    "refuse": lambda s: s.runs.join(
        run_id=RUN, silo_name=B, state=RunSiloState.REFUSED, reason_code="policy", reason={"rule": 1}
    ),
    "flower": lambda s: s.runs.set_flower_run(run_id=RUN, flower_run_id=3),
    "layout": lambda s: s.runs.set_layout(run_id=RUN, layout={"a": 1}, weights_path="0", weights_sha256="0" * 64),
    "running": lambda s: s.runs.set_state(run_id=RUN, state=RunState.RUNNING),
    "open": lambda s: s.rounds.open(run_id=RUN, number=1, step=1, roster=[A, B]),
    "abandon": lambda s: s.rounds.abandon(run_id=RUN, number=1, detail={"why": "test"}),
    "open again": lambda s: s.rounds.open(run_id=RUN, number=1, step=2, roster=[A, B]),
    "upload": lambda s: s.rounds.silo_round(run_id=RUN, number=1, silo_name=A, state=UPLOADED, bytes_up=9),
    "fail": lambda s: s.rounds.silo_round(run_id=RUN, number=1, silo_name=B, state=SiloRoundState.FAILED),
    "cohort": lambda s: s.rounds.fix_cohort(run_id=RUN, number=1, cohort=[A]),
    "commit": lambda s: s.rounds.commit(
        run_id=RUN,
        number=1,
        cohort=[A],
        weights_path="1",
        weights_sha256="1" * 64,
        evaluations=[Evaluation(round_number=0, split=Split.TEST, silos=[A], num_examples=3, loss=0.5)],
        silo_rounds={A: SiloRoundFields(num_examples=7)},
    ),
    "figures": lambda s: s.rounds.silo_round(run_id=RUN, number=1, silo_name=A, metrics={"test_loss": 0.5}),
    "evaluation": lambda s: s.rounds.record_evaluation(
        run_id=RUN,
        evaluation=Evaluation(round_number=1, split=Split.TEST, silos=[A], num_examples=3, loss=0.4),
    ),
    "waiting": lambda s: s.runs.set_state(run_id=RUN, state=RunState.WAITING, reason="waiting for hospital-b"),
    "paused": lambda s: s.runs.set_state(run_id=RUN, state=RunState.PAUSED, reason="disk", reason_code="disk"),
    "stopped": lambda s: s.runs.set_state(run_id=RUN, state=RunState.STOPPED, reason="by its owner"),
    "revoke": lambda s: s.silos.revoke(B),
    "cancel": lambda s: s.silos.cancel_invites(),
    "move": lambda s: s.runs.move_weights(run_id=RUN, weights_path="2"),
}


def everything(store: Store) -> list[object]:
    """All rows that these steps can change."""
    rounds, parts = store.rounds.list(RUN), store.rounds.silo_rounds(RUN)
    runs, silos = store.runs.list(), store.runs.silos(RUN)
    rest = [store.rounds.evaluations(RUN), store.silos.list(), store.silos.invites(), store.events.list()]
    return [rounds, parts, runs, silos, *rest]


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Step], Step]:
    """Makes a step's commits happen and their answers get lost."""
    write = Database.write

    @contextmanager
    def lossy(database: Database) -> Iterator[Connection]:
        with write(database) as connection:
            yield connection
        raise StoreUnavailableError("the answer was lost")

    def losing(step: Step) -> Step:
        def run(store: Store) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(Database, "write", lossy)
                with pytest.raises(StoreUnavailableError, match="the answer was lost"):
                    step(store)

        return run

    return losing


def test_every_step_of_a_run_can_be_repeated(
    store: Store, enrol: Callable[..., None], losing: Callable[[Step], Step]
) -> None:
    enrol(A, B)
    before = everything(store)
    for name, step in STEPS.items():
        losing(step)(store)
        once = everything(store)
        step(store)
        assert everything(store) == once, name
        assert name in ("cancel",) or once != before, name
        before = once
    assert [e.detail["to"] for e in store.events.list() if e.kind == "run.state"] == [
        "running",
        "waiting",
        "paused",
        "stopped",
    ]
    assert sum(e.kind == "round.committed" for e in store.events.list()) == 1
    store.events.verify()
