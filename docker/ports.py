"""Prints the TCP ports that answer, as seen from where it runs: python ports.py HOST FIRST LAST."""

from __future__ import annotations

import socket
import sys


def answers(address: tuple[str, int]) -> bool:
    """Whether a connection is taken."""
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex(address) == 0


def report(host: str, first: int, last: int) -> str:
    """The ports that answer, or that the host has no address."""
    try:
        address = socket.gethostbyname(host)
    except socket.gaierror:
        return "unknown"
    return " ".join(str(port) for port in range(first, last + 1) if answers((address, port)))


if __name__ == "__main__":
    sys.stdout.write(report(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])) + "\n")
