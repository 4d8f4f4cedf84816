"""Prints the TCP ports of a host that answer, as seen from where it runs: python ports.py HOST FIRST LAST."""

from __future__ import annotations

import errno
import socket
import sys


def knock(address: tuple[str, int]) -> int:
    """0, or the error number with which the connection failed; of a timeout, EAGAIN."""
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex(address)


def report(host: str, first: int, last: int) -> str:
    """The ports that answer. A host that refuses nothing either is out of reach."""
    address = socket.gethostbyname(host)
    found = {port: knock((address, port)) for port in range(first, last + 1)}
    if not {0, errno.ECONNREFUSED} & set(found.values()):
        return "out of reach"
    return " ".join(str(port) for port, error in found.items() if error == 0)


if __name__ == "__main__":
    sys.stdout.write(report(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])) + "\n")
