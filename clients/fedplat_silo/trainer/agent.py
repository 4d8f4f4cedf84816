"""The process that keeps several workers running. PyTorch is loaded twice at once, to be ready sooner."""

from __future__ import annotations

import argparse
import multiprocessing
from multiprocessing import forkserver
from pathlib import Path

from fedplat_silo.trainer.channel import Channel
from fedplat_silo.trainer.lifeline import die_with_parent, die_with_peer
from fedplat_silo.trainer.messages import AGENT, Hello


def main() -> None:
    """Started by the silo's process as the leader of a process group."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("parent", type=int)
    parser.add_argument("num_workers", type=int)
    given = parser.parse_args()
    die_with_parent(given.parent)
    channel = Channel.connect(given.socket)
    die_with_peer(channel.socket)
    channel.send(Hello(rank=AGENT))
    # Workers are forked from a process that imports torch while this one does.
    multiprocessing.set_forkserver_preload(["fedplat_silo.trainer.worker"])
    forkserver.ensure_running()
    from fedplat_silo.trainer.elastic import supervise

    supervise(given.socket, given.num_workers, channel)


if __name__ == "__main__":
    main()
