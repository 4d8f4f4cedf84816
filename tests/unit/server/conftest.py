"""A blank database of each kind, for each test, and a store on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from fedplat_server.store import Store, open_store
from tests.support.postgres import PrivatePostgres, private_postgres
from tests.support.silos import enrol_silos


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    with private_postgres() as server:
        server.create_database("tests")
        yield server


@pytest.fixture
def postgres_url(postgres: PrivatePostgres) -> str:
    return postgres.clear_database("tests")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fedplat.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = open_store(database_url)
    yield store
    store.close()


@pytest.fixture
def enrol(store: Store) -> Callable[..., None]:
    """Enrols silos by name, as an invite and its use would."""
    return partial(enrol_silos, store)


@pytest.fixture
def submit(store: Store) -> Callable[..., str]:
    """Submits a run and answers with its id."""

    def submit(run_id: str = "run-1", num_rounds: int = 3) -> str:
        spec = {"rounds": num_rounds}
        store.runs.create(run_id=run_id, name="heart", spec=spec, spec_hash="5" * 64, rounds_planned=num_rounds)
        return run_id

    return submit
