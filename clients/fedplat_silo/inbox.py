"""Messages from the moment they are pulled until they are answered: opened in order, answered in a thread a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedplat.errors import ConflictError, ConnectionLostError, FedplatError, WireError
from fedplat.reasons import Code
from fedplat.wire.messages import TrainRequest
from fedplat_silo.backoff import Backoff
from fedplat_silo.client_app import ERROR_UNREADABLE, round_of, run_of
from fedplat_silo.runs import Runs
from fedplat_silo.supernode import Delivery, Fleet
from fedplat_silo.trainer.errors import Cancelled

log = logging.getLogger(__name__)
REFUSED_PAUSE_S = 1.0


@dataclass(frozen=True)
class _Opened:
    message: Message
    pulled_at_s: float
    pull_s: float
    turn: _Turn


# A message's place in the run: (round, whether it measures, which comes after all training in that round).
_Turn = tuple[int, bool]
_NO_TURN: _Turn = (0, True)


class _Line(SimpleQueue["_Opened | None"]):
    """A run's messages in their order; None: the run is over. Keeps the times of the last exchange, the turn of what is
    worked on, and the latest turn of all that is not done."""

    replied_at_s: float | None = None
    push_s: float = 0.0
    current: _Turn = _NO_TURN
    latest: _Turn = _NO_TURN


class Inbox:
    """`spawn(name, work)` starts a thread whose failure ends the process."""

    def __init__(
        self,
        fleet: Fleet,
        app: ClientApp,
        runs: Runs,
        stop: threading.Event,
        spawn: Callable[[str, Callable[[], None]], None],
    ) -> None:
        self._fleet = fleet
        self._app = app
        self._runs = runs
        self._stop = stop
        self._spawn = spawn
        self._closed: SimpleQueue[Delivery] = SimpleQueue()
        self._holding: set[str] = set()
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()

    def holding(self) -> tuple[str, ...]:
        """Ids of the messages that are pulled and not answered yet."""
        with self._lock:
            return tuple(sorted(self._holding))

    def pull(self) -> None:
        """Takes the next message, only its head, so that it is quick; the next call tells whether there are more.
        Raises ConnectionLostError."""
        delivery = self._fleet.pull()
        if delivery is not None:
            with self._lock:
                self._holding.add(delivery.id)
            self._closed.put(delivery)

    def end(self, run: str) -> None:
        """The run is over: what it does is stopped, and its own thread tidies up."""
        self._runs.cancel(run)
        self._submit(run, None)

    def open_messages(self) -> None:
        """The opening thread's work, until the process stops."""
        while not self._stop.is_set():
            delivery = self._closed.get()
            begun_s = time.monotonic()
            message = self._open(delivery)
            if message is None:
                self._release(delivery.id)
                continue
            run = run_of(message.content) or ""
            turn = round_of(message.content) or 0, message.metadata.message_type != TrainRequest.kind
            self._submit(run, _Opened(message, begun_s, time.monotonic() - begun_s, turn))

    def _open(self, delivery: Delivery) -> Message | None:
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                return self._fleet.open(delivery)
            except ConnectionLostError as error:
                log.debug("message %s: %s", delivery.id, error)
                self._stop.wait(backoff.next_s())
            except (ConflictError, WireError) as error:
                log.debug("message %s is dropped: %s", delivery.id, error)
                return None
        return None

    def _submit(self, run: str, item: _Opened | None) -> None:
        with self._lock:
            line = self._lines.get(run)
            if line is None:
                line = self._lines[run] = _Line()
                self._spawn(f"run {run}", lambda: self._work(run, line))
            if item is not None and item.turn > line.latest:
                line.latest = item.turn
                if line.current > _NO_TURN:
                    log.info("run %s: round %d has gone on without this silo", run, line.current[0])
                    self._runs.interrupt(run)
            line.put(item)

    def _work(self, run: str, line: _Line) -> None:
        while not self._stop.is_set():
            item = line.get()
            if item is None:
                self._end_run(run)
            elif self._begin(item, line):
                self._handle(item, line)
            with self._lock:
                line.current = _NO_TURN
                line.latest = _NO_TURN if line.empty() else line.latest
                if line.empty() and run not in self._runs.names:
                    del self._lines[run]
                    return

    def _begin(self, item: _Opened, line: _Line) -> bool:
        """Whether it is still of use: the server does not wait for a round any more when it asks for a later one."""
        with self._lock:
            if _NO_TURN < item.turn < line.latest:
                self._holding.discard(item.message.metadata.message_id)
                return False
            line.current = item.turn
            return True

    def _end_run(self, run: str) -> None:
        log.info("run %s is over", run)
        try:
            self._runs.end(run)
        except (OSError, FedplatError) as error:
            log.warning("run %s could not be tidied away; the next start of this silo does it: %s", run, error)

    def _handle(self, item: _Opened, line: _Line) -> None:
        try:
            reply = self._answer(item, line)
            begun_s = time.monotonic()
            if reply is not None:
                self._send(reply, line)
            line.replied_at_s = time.monotonic()
            line.push_s = line.replied_at_s - begun_s
        finally:
            self._release(item.message.metadata.message_id)

    def _answer(self, item: _Opened, line: _Line) -> Message | None:
        metadata = item.message.metadata
        waiting_s = 0.0 if line.replied_at_s is None else max(0.0, item.pulled_at_s - line.replied_at_s)
        context = Context(
            run_id=metadata.run_id,
            node_id=metadata.dst_node_id,
            node_config={"waiting_s": waiting_s, "communicating_s": line.push_s + item.pull_s},
            state=RecordDict(),
            run_config={},
        )
        try:
            return self._app(item.message, context)
        except Cancelled:
            log.debug("message %s: cancelled", metadata.message_id)
            return None
        except ValueError:
            log.exception("message %s of type %s cannot be answered", metadata.message_id, metadata.message_type)
            return Message(Error(ERROR_UNREADABLE, Code.MESSAGE_INVALID.value), reply_to=item.message)

    def _send(self, reply: Message, line: _Line) -> None:
        """Until it has arrived, or something newer of the run has come: the server has asked again then."""
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                self._fleet.push(reply)
                return
            except ConnectionLostError as error:
                log.debug("a reply was not sent: %s", error)
                self._stop.wait(backoff.next_s())
                if not line.empty():
                    return
            except (ConflictError, WireError) as error:
                # If it still wants the answer it asks again, and gets it from the spool.
                log.debug("a reply was not taken: %s", error)
                self._stop.wait(REFUSED_PAUSE_S)
                return

    def _release(self, message_id: str) -> None:
        with self._lock:
            self._holding.discard(message_id)
