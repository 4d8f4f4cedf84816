"""Flower's server internals, guarded. The only room that imports them; the rest speaks `flwr.app` and `Link`."""

from fedplat_server.superlink.link import Link, Outgoing

__all__ = ["Link", "Outgoing"]
