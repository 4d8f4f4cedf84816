"""A worker: connects to the silo's process, prepares, and does what it is told, until the other end closes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

from fedplat.params import Vector
from fedplat.reasons import Code, Reason
from fedplat.wire.http import Phase
from fedplat_silo.console import PACKAGE
from fedplat_silo.data.errors import Refused
from fedplat_silo.trainer.channel import Channel
from fedplat_silo.trainer.ddp import Place, meet
from fedplat_silo.trainer.lifeline import die_with_parent, die_with_peer
from fedplat_silo.trainer.memory import map_vector
from fedplat_silo.trainer.messages import Command, Done, Failed, Hello, Progress, Setup
from fedplat_silo.trainer.plan import TrainingPlan
from fedplat_silo.trainer.session import Session

_REPORT_EVERY_S = 0.5
PREPARING = "preparing"
_YIELDS = 5
"""By how much a worker that trains is nicer than everything else: whoever comes back after a death catches up first,
and a hospital's machine answers its people meanwhile."""


class Worker:
    """One rank. A failure of the task is reported, and ends what this worker can do."""

    def __init__(self, channel: Channel, rank: int, store_file: Path) -> None:
        self._channel = channel
        self._rank = rank
        self._store_file = store_file
        self._phase = PREPARING
        self._reported_s = 0.0

    def serve(self) -> None:
        """Runs until the other end closes, or the task fails."""
        line = self._channel.receive()
        if line is None:
            return
        plan = Setup.model_validate_json(line).plan
        place = find_place(plan, self._rank)
        configure(plan.threads, place)
        if place.num_ranks > 1:
            meet(place, self._store_file)
        try:
            session = Session(plan, place, self._report)
            self._channel.send(session.prepared())
            os.nice(_YIELDS)
            self._obey(session)
        except Refused as error:
            self._fail(error.reason, str(error))
        except Exception:  # noqa: BLE001 (the boundary: a task may raise anything, and its text must stay here)
            self._fail(Reason.of(Code.TASK_FAILED, phase=self._phase), traceback.format_exc())

    def _obey(self, session: Session) -> None:
        vectors: tuple[Vector, Vector] | None = None
        while (line := self._channel.receive()) is not None:
            command = Command.model_validate_json(line)
            if vectors is None:
                first, second = self._channel.fds
                vectors = map_vector(first, session.layout.size), map_vector(second, session.layout.size)
            self._phase, self._reported_s = PREPARING, 0.0
            self._channel.send(execute(session, command, *vectors))

    def _report(self, phase: Phase, share: float) -> None:
        now, changed = time.monotonic(), phase.value != self._phase
        self._phase = phase.value
        if self._rank == 0 and (changed or now - self._reported_s >= _REPORT_EVERY_S):
            self._reported_s = now
            self._channel.send(Progress(phase=phase, share=share))

    def _fail(self, reason: Reason, detail: str) -> None:
        print(f"rank {self._rank}: {detail}", file=sys.stderr, flush=True)  # noqa: T201 (this is the log)
        self._channel.send(Failed(reason=reason))
        # Its end would look like a crash to the others. The silo's process closes the connection, and that ends it.
        threading.Event().wait()


def execute(session: Session, command: Command, weights: Vector, out: Vector) -> Done:
    """One command."""
    match command.kind:
        case "weights":
            return session.write_initial(out) if session.place.rank == 0 else Done()
        case "train":
            return session.train(command, weights, out)
        case "evaluate":
            return session.evaluate(command, weights)


def find_place(plan: TrainingPlan, rank: int) -> Place:
    """Where this rank computes."""
    device = torch.device("cuda", plan.gpus[rank]) if plan.gpus else torch.device("cpu")
    return Place(rank, plan.num_ranks, device)


def configure(num_threads: int, place: Place) -> None:
    """Same numbers every time, as far as torch can: the thread count matters, too."""
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)


def run(socket: str, rank: int, generation: int) -> None:
    """A worker's whole life."""
    channel = Channel.connect(Path(socket))
    die_with_peer(channel.socket)
    logging.basicConfig(format=f"rank {rank}: %(message)s")  # to standard error, which is the silo's log
    logging.getLogger(PACKAGE).setLevel(logging.INFO)
    channel.send(Hello(rank=rank, generation=generation))
    Worker(channel, rank, Path(f"{socket}.store-{generation}")).serve()


def run_in_group(socket: str) -> None:
    """The same under the elastic agent, which says in the environment which worker this is."""
    die_with_parent()
    try:
        run(socket, int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    except BaseException:
        traceback.print_exc()  # the agent would hide it in a file
        raise


def main() -> None:
    """Started by the silo's process where there is a single worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("parent", type=int)
    given = parser.parse_args()
    die_with_parent(given.parent)
    run(given.socket, rank=0, generation=0)


if __name__ == "__main__":
    main()
