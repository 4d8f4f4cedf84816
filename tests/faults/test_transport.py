"""Large models over lines that break: real server, real silos, TLS, and a proxy between them that cuts, throttles and
counts. Every run must end with the sum that an undisturbed line gives, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedplat.wire.buffers import PIECE_BYTES
from tests.support.federation import Federation, add_constant, federation, wait_until
from tests.support.lossy import Line, line_to, wait_for_bytes

SILOS = ("silo-a", "silo-b")
FLOATS = 15_000_000
MODEL_BYTES = 4 * FLOATS
POLICY = 'allowed_tasks = ["*"]\n'


@contextmanager
def over(**behaviour: object) -> Iterator[tuple[Federation, Line]]:
    """A federation whose silos reach the server over one such line."""
    with federation() as fed, line_to(fed.port, **behaviour) as line:
        for silo in SILOS:
            join(fed, line, silo)
        yield fed, line


def join(fed: Federation, line: Line, silo: str) -> None:
    """Start a silo that knows the server by the line's near end."""
    fed.join(silo, "--server", f"localhost:{line.port}", policy=POLICY)


def submit(fed: Federation, rounds: int = 2, floats: int = FLOATS) -> str:
    """A run of a big model."""
    return fed.submit(add_constant(size=floats, rounds=rounds, silos=SILOS, minimum=2, timeout_s=300))


def check_sum(fed: Federation, run: str, rounds: int, floats: int = FLOATS) -> None:
    """Both silos add the same constant, so the mean does; adding is done in float32, round by round."""
    expected = np.zeros(1, np.float32)
    for _ in range(rounds):
        update = (expected + np.float32(0.01)) - expected
        expected = (expected.astype(np.float64) + update).astype(np.float32)
    weights = fed.weights(run)["weights.0"]
    assert weights.shape == (floats,)
    assert (weights == expected[0]).all()


def staged(fed: Federation, run: str) -> list[Path]:
    """What lies in the run's staging folder."""
    return [
        path for path in (fed.folder / "server" / "server" / "runs" / run).rglob("*.*") if path.parent.name == "staging"
    ]


def test_connections_cut_at_twenty_places_of_uploads_and_of_downloads_cost_little() -> None:
    source = random.Random(3)
    rounds = 3
    total = 2 * rounds * MODEL_BYTES
    cuts_up = sorted(source.randrange(MODEL_BYTES, total) for _ in range(20))
    cuts_down = sorted(source.randrange(MODEL_BYTES, total) for _ in range(20))
    with over(cuts_up=cuts_up, cuts_down=cuts_down) as (fed, line):
        run = submit(fed, rounds)
        fed.wait_for(run, timeout_s=240)
        check_sum(fed, run, rounds)
        assert line.num_cut == 40
        # one upload more than the rounds' (the first weights), one download more (the closing evaluation)
        sent_up, sent_down = total + MODEL_BYTES, total + 2 * MODEL_BYTES
        assert line.bytes_up < 1.02 * sent_up + 20 * PIECE_BYTES
        assert line.bytes_down < 1.02 * sent_down + 20 * PIECE_BYTES
        assert staged(fed, run) == []


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("direction", "victim"),
    [
        ("up", "server"),
        ("down", "silo-a"),
        pytest.param("up", "silo-a", marks=SLOW),
        pytest.param("down", "server", marks=SLOW),
    ],
)
def test_a_kill_in_the_middle_of_a_transfer_costs_a_piece(victim: str, direction: str) -> None:
    with over() as (fed, line):
        run = submit(fed, rounds=2)
        wait_until(lambda: fed.live(run)["rounds_committed"] >= 1, 120, fed.all_logs)
        line.bytes_per_s = 15e6  # four seconds a transfer
        before = line.bytes_up if direction == "up" else line.bytes_down
        wait_for_bytes(lambda: (line.bytes_up if direction == "up" else line.bytes_down) - before, MODEL_BYTES)
        moved = line.bytes_up + line.bytes_down
        fed.kill(victim)
        line.bytes_per_s = None
        if victim == "server":
            fed.start_server()
        else:
            join(fed, line, victim)
        fed.wait_for(run, timeout_s=120)
        check_sum(fed, run, 2)
        # at most the round's four transfers and the closing evaluation's two, less what was there
        assert line.bytes_up + line.bytes_down - moved < 6.2 * MODEL_BYTES - 0.5 * MODEL_BYTES


@pytest.mark.slow
def test_a_slow_and_lossy_line_carries_a_hundred_megabytes() -> None:
    floats = 25_000_000
    with over(bytes_per_s=2e6, drop_share=0.05) as (fed, line):
        run = fed.submit(add_constant(size=floats, rounds=1, silos=SILOS, minimum=2, timeout_s=20))
        fed.wait_for(run, timeout_s=900)
        check_sum(fed, run, 1, floats)
        assert line.num_connections > 2


@pytest.mark.slow
def test_a_proxy_that_cuts_idle_connections_after_sixty_seconds_does_no_harm() -> None:
    with over(idle_s=60.0) as (fed, line):
        first = submit(fed, rounds=1)
        fed.wait_for(first, timeout_s=120)
        wait_until(lambda: line.num_connections >= 2, 10)
        import time

        time.sleep(130)
        assert all(fed.connected(silo) for silo in SILOS)
        assert "the server is away" not in fed.all_logs()
        second = submit(fed, rounds=1)
        fed.wait_for(second, timeout_s=120)
        check_sum(fed, second, 1)
