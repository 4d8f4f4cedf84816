"""A line between silos and server that can be slow, break, and count: a TCP proxy in a thread of its own."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_CHUNK = 16 * 1024


@dataclass
class Line:
    """`bytes_per_s` holds for each direction of each connection; `drop_share` of the connections die at a random moment
    of their first `drop_within` bytes; `cuts_up` and `cuts_down`: totals at which the connection that carries that byte
    is cut. `idle_s`: connections without a byte for so long are cut."""

    target: tuple[str, int]
    bytes_per_s: float | None = None
    drop_share: float = 0.0
    drop_within: int = 8 << 20
    cuts_up: list[int] = field(default_factory=list)
    cuts_down: list[int] = field(default_factory=list)
    idle_s: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    num_connections: int = 0
    num_cut: int = 0
    port: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self.target, timeout=10)
        except OSError:
            near.close()
            return
        with self._lock:
            self.num_connections += 1
            doomed = self._random.random() < self.drop_share
            budget = [self._random.randrange(1, self.drop_within)] if doomed else None
        for sock in (near, far):
            sock.settimeout(self.idle_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink, up in ((near, far, True), (far, near, False)):
            threading.Thread(target=self._pump, args=(source, sink, up, budget), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool, budget: list[int] | None) -> None:
        begun, sent = time.monotonic(), 0
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if self._is_cut(len(data), up, budget):
                    break
                sink.sendall(data)
                sent += len(data)
                if self.bytes_per_s:
                    time.sleep(max(0.0, begun + sent / self.bytes_per_s - time.monotonic()))
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _is_cut(self, num_bytes: int, up: bool, budget: list[int] | None) -> bool:
        with self._lock:
            if up:
                self.bytes_up += num_bytes
            else:
                self.bytes_down += num_bytes
            cuts, total = (self.cuts_up, self.bytes_up) if up else (self.cuts_down, self.bytes_down)
            cut = bool(cuts) and total >= cuts[0]
            if cut:
                cuts.pop(0)
            if budget is not None:
                budget[0] -= num_bytes
                cut = cut or budget[0] < 0
            self.num_cut += cut
            return cut


@contextmanager
def line_to(target_port: int, **behaviour: object) -> Iterator[Line]:
    """A line to a server on this machine; `line.port` is its near end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        line = Line(("127.0.0.1", target_port), **behaviour)  # type: ignore[arg-type]
        line.port = listening.getsockname()[1]
        threading.Thread(target=line._serve, args=(listening,), daemon=True).start()
        yield line


def wait_for_bytes(count: Callable[[], int], num_bytes: int, timeout_s: float = 60.0) -> None:
    """Until so many bytes have passed."""
    deadline = time.monotonic() + timeout_s
    while count() < num_bytes:
        assert time.monotonic() < deadline, f"{count()} of {num_bytes} bytes in {timeout_s} s"
        time.sleep(0.01)
