"""The silo's resident process: puts the parts together, and ends when it is told to."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

from fedplat.errors import ConnectionLostError, FedplatError
from fedplat.home import SiloHome, home_id, next_boot
from fedplat.identity import Invite, read_invite
from fedplat.names import check_address
from fedplat.wire.http import Progress
from fedplat_silo.caller import Caller, Presence
from fedplat_silo.client_app import make_client_app
from fedplat_silo.console import set_up_logging
from fedplat_silo.datasets import parse_dataset, remember_datasets
from fedplat_silo.enrol import enrol
from fedplat_silo.inbox import Inbox
from fedplat_silo.membership import Membership, load_membership
from fedplat_silo.policy import load_policy
from fedplat_silo.progress import Reporter
from fedplat_silo.road import Road
from fedplat_silo.runs import Runs
from fedplat_silo.status import Status, silo_home, status_file, write_status
from fedplat_silo.supernode import Fleet
from fedplat_silo.trainer.group import WorkerGroup
from fedplat_silo.transport import Clock, Server, Signer, tls_for
from fedplat_silo.workplace import Site

log = logging.getLogger(__name__)
PROGRESS_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class JoinOptions:
    """What `fedplat client join` was told. `invite` and `server` are needed the first time only (`server` never)."""

    root: Path
    silo: str | None = None
    invite: str | None = None
    server: str | None = None
    datasets: tuple[str, ...] = ()
    num_workers: int = 1
    gpus: tuple[int, ...] = ()
    verbose: bool = False


def join(options: JoinOptions) -> None:
    """Runs the silo until Ctrl-C or SIGTERM. Raises FedplatError for what a person has to mend."""
    invite = read_invite(options.invite) if options.invite is not None else None
    if options.server is not None:
        check_address(options.server)
    for argument in options.datasets:
        parse_dataset(argument)
    home = _home(options, invite)
    home.create()
    with home.lock():
        set_up_logging(home.log, verbose=options.verbose)
        load_policy(home.policy).check_gpus(options.gpus)
        if not remember_datasets(home.datasets, options.datasets):
            log.warning("no dataset is known yet: name one with --data NAME=PATH")
        if invite is not None:
            enrol(home, invite, options.server)
        SiloProcess(home, load_membership(home), options).run()


def _home(options: JoinOptions, invite: Invite | None) -> SiloHome:
    """A new silo's home is named by --silo or by its invite, that of an enrolled one may be the only one there is."""
    name = options.silo or (invite.silo if invite else None)
    return SiloHome(options.root, name) if name else silo_home(options.root, None)


class SiloProcess:
    """One silo, connected. Needs the home's lock."""

    def __init__(self, home: SiloHome, membership: Membership, options: JoinOptions) -> None:
        self._home = home
        self._started_at = time.time()
        self._stop = threading.Event()
        self._outcome: SimpleQueue[Exception] = SimpleQueue()
        address = options.server or membership.place.address
        signer = Signer(home.name, membership.key, Clock())
        tls = tls_for(membership.ca_pem)
        self._server = Server(address, tls, signer)
        self._reporter = Reporter(self._send_progress, self._publish)
        site = Site(
            home,
            WorkerGroup,
            self._reporter.report,
            lambda: Road(address, tls, signer),
            options.num_workers,
            options.gpus,
        )
        self._runs = Runs(site)
        fleet = Fleet(address, tls, membership.place.node_id, signer)
        self._inbox = Inbox(fleet, make_client_app(self._runs, home.name), self._runs, self._stop, self._spawn)
        presence = Presence(home_id(home), next_boot(home), self._inbox.holding, lambda: self._runs.names)
        self._caller = Caller(self._server, presence, self._inbox.pull, self._end, self._reporter.changed)

    def run(self) -> None:
        """Until Ctrl-C or SIGTERM; raises what ended it otherwise."""
        signal.signal(signal.SIGTERM, _interrupt)
        log.info("silo %s is up (process %d); Ctrl-C ends it", self._home.name, os.getpid())
        self._spawn("reporter", lambda: self._reporter.run(self._stop))
        self._spawn("warm-up", self._runs.warm_up)
        self._spawn("opener", self._inbox.open_messages)
        self._spawn("caller", lambda: self._caller.run(self._stop))
        try:
            raise self._outcome.get()
        except KeyboardInterrupt:
            log.info("stopping")
        finally:
            self._close()

    def _close(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._stop.set()
        self._runs.stop()
        status_file(self._home).unlink(missing_ok=True)

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        """A thread that dies with the process, and whose failure ends it."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # `run` raises it again
                unforeseen = None if isinstance(error, FedplatError) else error
                log.debug("the thread %s ended: %s", name, error, exc_info=unforeseen)
                self._outcome.put(error)

        threading.Thread(target=guarded, name=name, daemon=True).start()

    def _end(self, run: str) -> None:
        self._inbox.end(run)
        self._reporter.forget(run)

    def _send_progress(self, progress: Progress) -> None:
        if not self._caller.connected:
            raise ConnectionLostError("the server is away")
        self._server.post("progress", progress, timeout_s=PROGRESS_TIMEOUT_S)

    def _publish(self, runs: tuple[Progress, ...]) -> None:
        status = Status(
            silo=self._home.name,
            server=self._server.address,
            pid=os.getpid(),
            started_at=self._started_at,
            connected=self._caller.connected,
            since=self._caller.since_s,
            runs=runs,
        )
        write_status(self._home, status)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
