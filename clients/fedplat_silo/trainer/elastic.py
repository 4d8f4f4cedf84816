"""torch.distributed.elastic starts several workers, and all of them again when one dies.

Two choices differ from torchrun's, both for restarts that work and sockets that nobody else can reach: the rendezvous
is a file, and the workers meet through a file of their own in each generation (`worker.run`).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.api import WorkerGroup as Workers
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from fedplat_silo.trainer.channel import Channel
from fedplat_silo.trainer.messages import Exited
from fedplat_silo.trainer.worker import run_in_group

_ENDLESS = 1_000_000  # the silo's process counts restarts, per round


class Agent(LocalElasticAgent):
    """Tells the silo's process with which status its workers ended."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, channel: Channel) -> None:
        super().__init__(spec, logs, start_method="forkserver")
        self._channel = channel

    def _monitor_workers(self, worker_group: Workers) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            statuses = {rank: failure.exitcode for rank, failure in result.failures.items()}
            generation = _ENDLESS - self._remaining_restarts
            self._channel.send(Exited(generation=generation, statuses=statuses))
        return result


def supervise(socket: Path, num_workers: int, channel: Channel) -> None:
    """Keeps workers that connect to `socket` running, until SIGTERM; keeps its files beside the socket."""
    rendezvous = RendezvousParameters(
        backend="c10d",
        endpoint=f"{socket}.rendezvous",
        run_id="fedplat",
        min_nodes=1,
        max_nodes=1,
        local_addr="127.0.0.1",
        store_type="file",
    )
    spec = WorkerSpec(
        role="silo",
        local_world_size=num_workers,
        entrypoint=run_in_group,
        args=(str(socket),),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=_ENDLESS,
        monitor_interval=0.1,
        local_addr="127.0.0.1",
    )
    with suppress(SignalException):
        Agent(spec, DefaultLogsSpecs(log_dir=f"{socket}.logs"), channel).run()
