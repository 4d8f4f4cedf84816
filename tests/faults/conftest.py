"""What several fault tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import PrivatePostgres, private_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    with private_postgres() as server:
        server.create_database("faults")
        yield server


@pytest.fixture
def postgres_url(postgres: PrivatePostgres) -> str:
    return postgres.clear_database("faults")
