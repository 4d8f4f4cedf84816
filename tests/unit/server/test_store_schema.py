"""docs/schema.md tells the truth: its tables, its columns, its queries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import Row, text

from fedplat_server.store import Evaluation, Split, Store
from fedplat_server.store.session import Database
from fedplat_server.store.tables import metadata
from fedplat_server.transitions import SiloRoundState

DOCUMENT = (Path(__file__).parents[3] / "docs" / "schema.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)
SECTIONS = dict(re.findall(r"^\*\*(\w+)\*\*: (.*?)\n\n", DOCUMENT, re.DOTALL | re.MULTILINE))


@pytest.fixture
def lived(store: Store, enrol, submit) -> Store:
    """A store after one round of two silos, with a loss before and after it."""
    enrol("hospital-a", "hospital-b")
    where = {"run_id": submit("run-1"), "number": 1}
    names = ["hospital-a", "hospital-b"]
    store.rounds.open(**where, step=1, roster=names)
    for name in names:
        store.rounds.silo_round(**where, silo_name=name, state=SiloRoundState.UPLOADED)
    store.rounds.fix_cohort(**where, cohort=names)
    losses = {0: 0.7, 1: 0.5}
    store.rounds.commit(
        **where,
        cohort=names,
        weights_path="1.safetensors",
        weights_sha256="a" * 64,
        silo_rounds={
            "hospital-a": {"seconds_training": 2.0, "seconds_waiting": 5.0},
            "hospital-b": {"seconds_training": 9.0, "seconds_communicating": 1.0},
        },
        evaluations=[
            Evaluation(round_number=number, split=Split.TEST, silos=names, num_examples=20, loss=loss)
            for number, loss in losses.items()
        ],
    )
    return store


def ask(url: str, query: str) -> list[Row]:
    database = Database(url)
    with database.read() as connection:
        rows = list(connection.execute(text(query)))
    database.close()
    return rows


def test_the_loss_by_round(lived: Store, database_url: str) -> None:
    assert [tuple(row) for row in ask(database_url, QUERIES[0])] == [(0, 0.7, 20, 2), (1, 0.5, 20, 2)]


def test_the_slowest_silo_by_phase(lived: Store, database_url: str) -> None:
    assert [tuple(row) for row in ask(database_url, QUERIES[1])] == [
        ("hospital-b", "training", 1, 9.0, 9.0),
        ("hospital-a", "waiting", 1, 5.0, 5.0),
        ("hospital-a", "training", 1, 2.0, 2.0),
        ("hospital-b", "communicating", 1, 1.0, 1.0),
    ]


def test_who_did_what_when(lived: Store, database_url: str) -> None:
    rows = ask(database_url, QUERIES[2])
    assert [(row.actor, row.kind, row.silo_name) for row in rows][-2:] == [
        ("hospital-a", "silo.enrolled", "hospital-a"),
        ("server", "silo.invited", "hospital-a"),
    ]
    assert rows[0].kind == "round.committed"
    assert len(QUERIES) == 3


def test_json_can_be_read_as_the_document_says(lived: Store, database_url: str) -> None:
    json_of = "detail ->> 'round'" if database_url.startswith("sqlite") else "detail::json ->> 'round'"
    assert json_of in DOCUMENT
    [row] = ask(database_url, f"SELECT {json_of} AS number FROM events WHERE kind = 'round.committed'")
    assert str(row.number) == "1"


@pytest.mark.parametrize("table", metadata.tables)
def test_every_column_is_told(table: str) -> None:
    told = set(re.findall(r"`(\w+)`", SECTIONS[table]))
    assert {column.name for column in metadata.tables[table].columns} - told <= {"id"}
