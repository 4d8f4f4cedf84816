from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedplat.home import SiloHome
from tests.unit.silo_process.tls import TlsServer, tls_server


@pytest.fixture
def home(tmp_path: Path) -> SiloHome:
    made = SiloHome(tmp_path, "hospital-a")
    made.create()
    return made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    with tls_server(tmp_path / "s") as made:
        yield made
