"""The road of large buffers: what runs offer to silos, and what they expect from them, in pieces that are verified one
by one. A transfer that breaks goes on where it broke, also after a restart of either side.

Nothing may come that a run does not expect: one buffer of one length from a silo for a step, so what lies on the disk
is bounded by the roster. Thread-safe.
"""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedplat.bufferfiles import DamagedPieceError, Incoming, Region
from fedplat.durable import make_private_dir
from fedplat.errors import ConflictError, StoreUnavailableError, WireError
from fedplat.wire.buffers import PIECE_BYTES, BufferRef

STALLED_S = 30.0  # a transfer without a byte for so long is shown as one that does not move any more
MIN_BYTES_PER_S = 16 * 1024  # what is slower than this buys no more time than it has
_RATE_OVER_S = 5.0
_OVER = "Its round is over."


@dataclass
class Transfer:
    """How far one buffer has come, over all attempts. `bytes_per_s` is a moving average. Times are of a monotonic
    clock."""

    silo: str
    upload: bool
    total_bytes: int
    done_bytes: int = 0
    bytes_per_s: float = 0.0
    moved_at_s: float = field(default_factory=time.monotonic)
    _begun_at_s: float = 0.0
    _counted_at_s: float = 0.0
    _furthest_bytes: int = 0
    gained_bytes: int = 0

    def start_at(self, done_bytes: int) -> None:
        """Another attempt begins with so much. That is no movement: else who never gets a byte through would hold up
        a round for ever."""
        self.done_bytes = done_bytes
        self._begun_at_s = self._counted_at_s = time.monotonic()
        self._furthest_bytes = max(self._furthest_bytes, done_bytes)

    def move_to(self, done_bytes: int) -> None:
        """More has come or gone."""
        now = time.monotonic()
        passed_s = max(now - self._counted_at_s, 1e-6)
        share = min(1.0, passed_s / min(_RATE_OVER_S, max(now - self._begun_at_s, 1e-6)))
        self.bytes_per_s += share * (max(0, done_bytes - self.done_bytes) / passed_s - self.bytes_per_s)
        self.done_bytes, self._counted_at_s = done_bytes, now
        if done_bytes > self._furthest_bytes:
            self.gained_bytes += done_bytes - self._furthest_bytes
            self._furthest_bytes, self.moved_at_s = done_bytes, now

    @property
    def left_s(self) -> float | None:
        """How long the rest takes at this rate, in seconds."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.bytes_per_s > 0 else None

    @property
    def is_moving(self) -> bool:
        """Whether there is more to come, and it has got further a moment ago."""
        return self.done_bytes < self.total_bytes and time.monotonic() - self.moved_at_s < STALLED_S


@dataclass(frozen=True)
class Upload:
    """The rest of one piece. `digest`: that of its bytes, if it is a whole piece."""

    size_bytes: int
    digest: str | None
    take: Callable[[Sequence[bytes]], int]

    def write(self, *parts: bytes) -> int:
        """The next bytes, in one or more parts; returns how much of the upload is there."""
        return self.take(parts)


@dataclass
class _Expected:
    """An upload that a run waits for. `turn` counts announcements: late bytes of a broken connection are of an old
    one."""

    size_bytes: int
    incoming_path: Path
    target: Path
    turn: int = 0
    is_over: bool = False
    incoming: Incoming | None = None
    arrived: BufferRef | None = None
    is_accepted: bool = False
    transfer: Transfer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def now(self) -> Iterator[None]:
        """The lock, but not after others: a silo has one request at a time, and must not fill the server's threads
        with more."""
        if not self.lock.acquire(blocking=False):
            raise StoreUnavailableError("another request of this silo is being answered")
        try:
            yield
        finally:
            self.lock.release()

    def open(self, ref: BufferRef) -> int:
        """Takes stock of what is there; returns its length."""
        if self.is_over:
            raise ConflictError("the step is over", hint=_OVER)
        self.turn += 1
        if self.arrived is None and Region(self.target, 0, ref.size_bytes).is_good(ref):
            self.arrived = ref
        if self.arrived == ref:
            return ref.size_bytes
        if self.is_accepted:
            raise ConflictError("another buffer counts for this step already")
        self.arrived = None  # its silo has lost it before it counted, and has made another
        if self.incoming is not None:
            self.incoming.close()
        make_private_dir(self.incoming_path.parent)
        self.incoming = Incoming(self.incoming_path, ref)
        _check_space(self.incoming_path, ref.size_bytes - self.incoming.have_bytes)
        have = self.incoming.have_bytes
        self.finish_if_complete()
        return have

    def finish_if_complete(self) -> None:
        """The last byte is there. A kill cannot take it away; a power cut can, and then it is found damaged and asked
        for again: until the round is committed, the copy that survives everything is the one in the silo's spool."""
        if self.incoming is not None and self.incoming.is_complete and self.arrived is None:
            self.incoming.commit(self.target, durable=False)
            self.arrived = self.incoming.ref

    def close(self) -> None:
        """Late bytes are not taken any more."""
        with self.lock:
            self.turn += 1
            self.is_over = True
            if self.incoming is not None:
                self.incoming.close()
                self.incoming = None


def _check_space(path: Path, num_bytes: int) -> None:
    if shutil.disk_usage(path.parent).free < num_bytes:
        raise OSError(errno.ENOSPC, f"{num_bytes} bytes more do not fit on the disk", str(path))


@dataclass
class _RunRoad:
    offer: tuple[BufferRef, Region] | None = None
    readers: frozenset[str] = frozenset()
    expected: dict[tuple[int, str], _Expected] = field(default_factory=dict)
    transfers: dict[tuple[str, bool], Transfer] = field(default_factory=dict)
    trouble: OSError | None = None


class Road:
    """`on_trouble` is called (from the thread of a request) when the disk fails under a run's upload."""

    def __init__(self, on_trouble: Callable[[], None]) -> None:
        self._on_trouble = on_trouble
        self._runs: dict[str, _RunRoad] = {}
        self._lock = threading.Lock()

    # -- what a run does ------------------------------------------------------------------------------------------

    def offer(self, run: str, ref: BufferRef, region: Region, silos: frozenset[str]) -> None:
        """Let `silos` fetch a buffer too, instead of any other that the run offered before."""
        with self._lock:
            road = self._runs.setdefault(run, _RunRoad())
            road.readers = silos | (road.readers if road.offer == (ref, region) else frozenset())
            road.offer = ref, region

    def offered(self, run: str) -> tuple[BufferRef, Region] | None:
        """What the run offers in the open step."""
        with self._lock:
            return self._runs[run].offer if run in self._runs else None

    def expect(self, run: str, step: int, silo: str, size_bytes: int, incoming: Path, target: Path) -> None:
        """Let a silo upload one buffer of that length for a step; it lies at `target` when it has arrived."""
        with self._lock:
            road = self._runs.setdefault(run, _RunRoad())
            old = road.expected.get((step, silo))
            road.expected[step, silo] = _Expected(size_bytes, incoming, target)
        if old is not None:
            old.close()  # a connection that is still open must not write to what comes now

    def accept(self, run: str, step: int, silo: str, ref: BufferRef) -> bool:
        """Whether this upload has come whole; from now on it counts, and no other is taken."""
        with self._lock:
            expected = self._runs[run].expected.get((step, silo)) if run in self._runs else None
        if expected is None:
            return False
        with expected.lock:
            expected.is_accepted = expected.is_accepted or expected.arrived == ref
            return expected.arrived == ref

    def check(self, run: str) -> None:
        """Raises the OSError with which the disk has failed under an upload of this run."""
        with self._lock:
            trouble = self._runs[run].trouble if run in self._runs else None
        if trouble is not None:
            raise trouble

    def deadline_s(self, run: str, silo: str, begun_s: float, timeout_s: float) -> float:
        """Until when a step that began at `begun_s` waits for a silo: `timeout_s` from then, or from when its transfers
        last got further, so that a slow line takes nothing from its training. What has come pays for the time, at
        `MIN_BYTES_PER_S`: nobody holds up a round with a byte now and then."""
        mine = [t for t in self.transfers(run) if t.silo == silo and t.gained_bytes]
        paid_s = sum(t.gained_bytes for t in mine) / MIN_BYTES_PER_S
        return min(max([begun_s, *(t.moved_at_s for t in mine)]), begun_s + paid_s) + timeout_s

    def transfers(self, run: str) -> tuple[Transfer, ...]:
        """What is or was on its way in the open step."""
        with self._lock:
            road = self._runs.get(run)
            return tuple(road.transfers.values()) if road else ()

    def close(self, run: str) -> None:
        """The step is over: nothing more is offered or expected."""
        with self._lock:
            road = self._runs.pop(run, None)
        for expected in road.expected.values() if road else ():
            expected.close()

    # -- what a silo asks -----------------------------------------------------------------------------------------

    def announce(self, silo: str, run: str, step: int, ref: BufferRef) -> int:
        """A silo wants to upload; returns from which byte on, after a look at what is there from before."""
        road = self._run(run)
        expected = self._expected(road, run, step, silo)
        if ref.size_bytes != expected.size_bytes:
            raise WireError(
                f"silo {silo} announces {ref.size_bytes} bytes for step {step} of run {run}, not {expected.size_bytes}"
            )
        with expected.now(), self._disk(road):
            have = expected.open(ref)
            expected.transfer = self._transfer(road, silo, upload=True, size_bytes=ref.size_bytes, have_bytes=have)
            return have

    def upload(self, silo: str, run: str, step: int, offset: int) -> Upload:
        """The bytes of an announced buffer from `offset` on are about to come."""
        road = self._run(run)
        expected = self._expected(road, run, step, silo)
        with expected.lock:
            incoming, turn = expected.incoming, expected.turn
            if incoming is None or incoming.is_complete or incoming.have_bytes != offset:
                raise DamagedPieceError(f"the upload does not go on at byte {offset}", hint="Announce it again.")
            end = min(incoming.ref.size_bytes, (offset // PIECE_BYTES + 1) * PIECE_BYTES)
            digest = incoming.ref.pieces[offset // PIECE_BYTES] if offset % PIECE_BYTES == 0 else None
        return Upload(end - offset, digest, lambda parts: self._write(road, expected, turn, parts))

    def download(self, silo: str, run: str, digest: str, offset: int) -> tuple[Region, Transfer]:
        """A buffer that is offered to this silo, who has it up to `offset`."""
        road = self._run(run)
        with self._lock:
            if road.offer is None or road.offer[0].digest != digest or silo not in road.readers:
                raise ConflictError(f"run {run} does not offer that buffer to silo {silo}", hint=_OVER)
            region = road.offer[1]
        if offset >= region.size_bytes:
            raise WireError(f"the buffer has {region.size_bytes} bytes, and {offset} is not one of them")
        return region, self._transfer(road, silo, upload=False, size_bytes=region.size_bytes, have_bytes=offset)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _write(self, road: _RunRoad, expected: _Expected, turn: int, parts: Sequence[bytes]) -> int:
        with expected.lock:
            incoming = expected.incoming
            if incoming is None or expected.turn != turn:
                raise DamagedPieceError("the upload was announced anew, or its step is over")
            with self._disk(road):
                for part in parts:
                    incoming.write(part)
                expected.finish_if_complete()
            if expected.transfer is not None:
                expected.transfer.move_to(incoming.have_bytes)
            return incoming.have_bytes

    def _transfer(self, road: _RunRoad, silo: str, *, upload: bool, size_bytes: int, have_bytes: int) -> Transfer:
        with self._lock:
            transfer = road.transfers.setdefault((silo, upload), Transfer(silo, upload, size_bytes))
            transfer.start_at(have_bytes)
            return transfer

    @contextmanager
    def _disk(self, road: _RunRoad) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            road.trouble = error
            self._on_trouble()
            raise StoreUnavailableError("the server's disk does not take the upload") from error

    def _run(self, run: str) -> _RunRoad:
        with self._lock:
            road = self._runs.get(run)
        if road is None:
            raise ConflictError(f"run {run} neither offers nor expects anything now", hint=_OVER)
        return road

    def _expected(self, road: _RunRoad, run: str, step: int, silo: str) -> _Expected:
        with self._lock:
            expected = road.expected.get((step, silo))
        if expected is None:
            raise ConflictError(f"run {run} expects nothing of silo {silo} for step {step}", hint=_OVER)
        return expected
