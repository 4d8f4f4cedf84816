"""The road of large buffers, from the silo's side: what breaks goes on where it broke, until the run is over."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path

from pydantic import ValidationError

from fedplat.bufferfiles import DamagedPieceError, Incoming, Region
from fedplat.durable import make_private_dir, remove
from fedplat.errors import ConflictError, ConnectionLostError, FedplatError, IdentityError, NotFoundError, WireError
from fedplat.wire.buffers import PIECE_BYTES, BufferRef
from fedplat.wire.http import BUFFERS, Announcement, Standing
from fedplat_silo.backoff import Backoff
from fedplat_silo.line import CHUNK_BYTES, Line
from fedplat_silo.trainer.errors import Cancelled
from fedplat_silo.transport import Signer

log = logging.getLogger(__name__)

REFUSED_PAUSE_S = 1.0
Report = Callable[[float], None]
_WARN_AFTER = 5  # failures without a byte between them
_FETCHED = "weights-"


class Road:
    """One run's transfers, one at a time, each over a connection of its own: an idle one would not outlive training.

    `cancel` and `close` may come from any thread. A transfer raises Cancelled after them, and when the server wants it
    no more: then it has moved on, or asks again. `report` takes the share of the bytes that is over.
    """

    def __init__(self, address: str, tls: ssl.SSLContext, signer: Signer) -> None:
        self._address, self._tls, self._signer = address, tls, signer
        self._over = threading.Event()  # one for each transfer
        self._is_closed = False
        self._line: Line | None = None
        self._backoff = Backoff()

    def fetch(self, run: str, ref: BufferRef, folder: Path, report: Report) -> Path:
        """Brings a buffer into a file of `folder`, which is verified; what is there of it is not brought again, and
        what is there of others goes. Raises Cancelled, WireError, OSError."""
        target = folder / f"{_FETCHED}{ref.digest[:16]}.weights"
        half_way = target.with_suffix(".incoming")
        make_private_dir(folder)
        forget_fetched(folder, keep=(target, half_way))
        if not Region(target, 0, ref.size_bytes).is_good(ref):
            with Incoming(half_way, ref) as incoming:
                self._insist(run, lambda line: self._receive(line, run, incoming, report))
                incoming.commit(target, durable=False)
        return target

    def deliver(self, run: str, step: int, region: Region, ref: BufferRef, report: Report) -> None:
        """The server has the buffer of that step when this returns. Raises Cancelled, WireError, OSError."""

        def attempt(line: Line) -> None:
            try:
                self._send(line, Announcement(run=run, step=step, buffer=ref), region, report)
            except DamagedPieceError:
                if region.is_good(ref):
                    raise
                log.warning("run %s: an update is damaged on this disk; it is made again when asked for", run)
                raise Cancelled from None

        self._insist(run, attempt)

    def close(self) -> None:
        """Ends a transfer at once, and allows no other."""
        self._is_closed = True
        self.cancel()

    def cancel(self) -> None:
        """Ends the transfer that another thread waits for, at once."""
        self._over.set()
        line = self._line
        if line is not None:
            line.cut()

    def _receive(self, line: Line, run: str, incoming: Incoming, report: Report) -> None:
        ref = incoming.ref
        if incoming.is_complete:
            return
        response = line.ask("GET", f"{BUFFERS}/{run}/{ref.digest}?offset={incoming.have_bytes}")
        if response.length != ref.size_bytes - incoming.have_bytes:
            raise WireError(f"the server answers {response.length} bytes of a buffer of {ref.size_bytes}")
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while not incoming.is_complete:
            incoming.write(buffer[: line.read_into(response, buffer)])
            self._backoff.reset()
            report(incoming.have_bytes / ref.size_bytes)

    def _send(self, line: Line, announcement: Announcement, region: Region, report: Report) -> None:
        size_bytes = announcement.buffer.size_bytes
        have = _standing(line, line.ask("POST", BUFFERS, announcement.model_dump_json().encode()))
        while have < size_bytes:
            start = have
            target = f"{BUFFERS}/{announcement.run}/{announcement.step}?offset={start}"
            piece, sha256 = _rest_of_piece(region, announcement.buffer, start)
            response = line.ask("PUT", target, piece, sha256, lambda sent: report((start + sent) / size_bytes))  # noqa: B023
            have = _standing(line, response)
            if have <= start:
                raise WireError(f"the server has taken bytes from {start} on, and now has {have}")
            self._backoff.reset()

    def _insist(self, run: str, attempt: Callable[[Line], None]) -> None:
        """Until it has worked, the server does not want it, or the run is over."""
        self._over = threading.Event()
        self._backoff.reset()
        while True:
            self._check()
            try:
                with Line(self._address, self._tls, self._signer) as self._line:
                    self._check()  # `cancel` may not have seen the line
                    attempt(self._line)
                    return
            except (ConflictError, NotFoundError) as error:
                log.debug("run %s: %s", run, error)
                self._over.wait(REFUSED_PAUSE_S)  # if the server differs, it asks again at once
                raise Cancelled from error
            except (ConnectionLostError, DamagedPieceError, IdentityError) as error:
                # One who is revoked hears of that by the call, which ends the process.
                self._wait(run, error)
            finally:
                self._line = None

    def _wait(self, run: str, error: FedplatError) -> None:
        pause_s = self._backoff.next_s()
        level = logging.WARNING if self._backoff.num_failures == _WARN_AFTER else logging.DEBUG
        log.log(level, "run %s: a transfer does not get through, and is tried again: %s", run, error.message)
        self._over.wait(pause_s)

    def _check(self) -> None:
        if self._is_closed or self._over.is_set():
            raise Cancelled


def forget_fetched(folder: Path, keep: tuple[Path, ...] = ()) -> None:
    """Removes what was fetched into a run's folder, whole or in part."""
    for path in folder.glob(f"{_FETCHED}*"):
        if path not in keep:
            remove(path)


def _rest_of_piece(region: Region, ref: BufferRef, start: int) -> tuple[bytes, str | None]:
    """The bytes from `start` to the end of their piece, and their SHA-256 where that is the piece's."""
    index, into = divmod(start, PIECE_BYTES)
    wanted = min(PIECE_BYTES - into, ref.size_bytes - start)
    data = region.read(start, wanted)
    if len(data) < wanted:
        raise DamagedPieceError(f"{region.path} has become shorter")
    return data, None if into else ref.pieces[index]


def _standing(line: Line, response: HTTPResponse) -> int:
    try:
        return Standing.model_validate_json(line.read(response)).have_bytes
    except ValidationError:
        raise WireError(
            "the server does not say how much it has", hint="Compare `fedplat --version` of both."
        ) from None
