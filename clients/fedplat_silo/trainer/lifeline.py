"""Workers never outlive the process that started them."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import threading

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Has the kernel kill this process when its parent ends. `parent`: who it must be (it may have ended already)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def die_with_peer(connection: socket.socket) -> None:
    """Ends this process when the other end of `connection` closes. The leader of a process group takes the group
    with it, a member goes alone. For the case that the kernel's signal does not come: it follows the thread."""
    threading.Thread(target=_watch, args=(connection.fileno(),), name="lifeline", daemon=True).start()


def _watch(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
