"""Checks of the home, its disk, its lock, the port, and of the process that answers there."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

from fedplat.doctor import Check, Finding, failed, ok, warning
from fedplat.doctor.machine import check_home, check_private, check_space, check_speed, holder_of, resolve
from fedplat.errors import ConnectionLostError
from fedplat.home import socket_path
from fedplat_server.adminclient import connect
from fedplat_server.doctor.visit import Visit

_TIMEOUT_S = 5.0
_HOME = ("home",)


def checks(visit: Visit) -> Iterator[Check]:
    """In the order in which a start needs these things."""
    path = visit.home.path
    yield Check("home", lambda: _home(visit))
    yield Check("files", lambda: check_private(path, visit.files), _HOME)
    yield Check("disk space", lambda: check_space(path), _HOME)
    yield Check("disk speed", lambda: check_speed(path), _HOME)
    yield Check("settings", lambda: _settings(visit), _HOME)
    yield Check("dns", lambda: _dns(visit), ("settings",))
    yield Check("process", lambda: _process(visit), _HOME, timeout_s=70)
    yield Check("port", lambda: _port(visit), ("settings", "process"))


def _home(visit: Visit) -> Finding:
    path = visit.home.path
    if not (path / "server.json").exists():
        return failed(
            f"no server was ever started at {path}", "Is --home right? A new server begins with: fedplat server start"
        )
    socket_path(visit.home.admin_socket)
    return check_home(visit.home)


def _settings(visit: Visit) -> Finding:
    settings = visit.settings
    return ok(f"{settings.address}, listening on {settings.host}:{settings.port}")


def _dns(visit: Visit) -> Finding:
    unknown = []
    for name in visit.settings.names:
        try:
            resolve(name)
        except OSError:
            unknown.append(name)
    first = visit.settings.names[0]
    if unknown:
        return warning(
            f"not known here: {', '.join(unknown)}",
            f"Silos connect to {first}: to them it must be known. fedplat server start --name HOST changes it.",
        )
    return ok(f"silos connect to {first}; all names of the certificate are known here")


def _process(visit: Visit) -> Finding:
    holder = visit.holder
    if holder is None:
        return ok("not running; `fedplat server start` starts it")
    if not _answers(visit):
        return failed(
            f"{holder.message}, and does not answer", "If it is not just starting or stopping: end it, and start anew."
        )
    return ok(f"running; {holder.message}")


def _answers(visit: Visit) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError, ConnectionLostError):
        probe.connect(str(visit.home.admin_socket))
        with connect(str(visit.home.root)) as admin:
            admin.get("/ping")
        return True
    return False


def _port(visit: Visit) -> Finding:
    settings = visit.settings
    if visit.holder is not None:
        return _own_port(visit)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
            probe.listen()
        except OSError as error:
            whose = f" by {holder_of(settings.port)}" if error.errno == errno.EADDRINUSE else ""
            return failed(
                f"{settings.host}:{settings.port} cannot be used: {error.strerror}{whose}",
                "End that program, or choose another port: fedplat server start --port N (silos need new invites).",
            )
    return ok(f"{settings.host}:{settings.port} is free")


def _own_port(visit: Visit) -> Finding:
    """A server that runs has to answer with its own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=visit.authority.certificate_pem)
    where = visit.local_host, visit.settings.port
    try:
        with (
            socket.create_connection(where, _TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname=visit.settings.names[0]),
        ):
            return ok(f"this server answers on port {visit.settings.port}, with its own certificate")
    except ssl.SSLError as error:
        return failed(
            f"what answers on port {where[1]} is not this server: {error.reason or error}",
            f"The port is held by {holder_of(where[1])}: end it, then start the server anew.",
        )
    except OSError as error:
        return failed(
            f"the server runs and does not answer on {where[0]}:{where[1]}: {error.strerror or error}",
            "Start it anew; server.log says more.",
        )
