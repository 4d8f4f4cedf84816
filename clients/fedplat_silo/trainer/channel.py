"""JSON lines over a Unix socket, and file descriptors with them."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from fedplat_silo.trainer.messages import Line

_CHUNK_BYTES = 1 << 16
_MAX_FDS = 2
_UCRED = struct.Struct("3i")


class Channel:
    """One end of a connection. Sending and receiving may be done by different threads, each by one only."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._buffer = bytearray()
        self.fds: list[int] = []

    @classmethod
    def connect(cls, path: Path) -> Channel:
        """To the socket at `path`."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(path))
        return cls(connection)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, line: Line, fds: Sequence[int] = ()) -> None:
        """Raises OSError if the other end is gone."""
        # json and not pydantic's own writer, which makes null of NaN
        data = json.dumps(line.model_dump(mode="json")).encode() + b"\n"
        sent = socket.send_fds(self.socket, [data], list(fds)) if fds else 0
        self.socket.sendall(data[sent:])

    def receive(self) -> bytes | None:
        """The next line, None at the end. Waits for it."""
        while b"\n" not in self._buffer:
            if not self._read():
                return None
        return self._take()

    def receive_ready(self) -> tuple[list[bytes], bool]:
        """(the lines that are there, whether more can come), after one read. For a socket that has something."""
        is_open = self._read()
        lines: list[bytes] = []
        while b"\n" in self._buffer:
            lines.append(self._take())
        return lines, is_open

    def peer(self) -> tuple[int, int]:
        """(process id, user id) of the other end, from the kernel."""
        credentials = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(credentials)
        return pid, uid

    def close(self) -> None:
        self.socket.close()

    def _read(self) -> bool:
        try:
            chunk, fds, _, _ = socket.recv_fds(self.socket, _CHUNK_BYTES, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return False
        self.fds += fds
        self._buffer += chunk
        return bool(chunk)

    def _take(self) -> bytes:
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line


def is_own(channel: Channel) -> bool:
    """Whether the other end runs as the same user."""
    return channel.peer()[1] == os.getuid()
