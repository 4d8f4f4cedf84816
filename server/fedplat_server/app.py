"""The server process: one uvicorn with TLS for silos, one Unix socket for the administrator, a thread a run."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from fedplat.errors import ConflictError, HomeError, StoreError
from fedplat.home import ServerHome
from fedplat.identity import (
    NonceCache,
    TlsFiles,
    ca_fingerprint,
    ensure_authority,
    ensure_signing_key,
    ensure_tls,
    public_pem,
)
from fedplat_server.administration import Administration, ServerIdentity
from fedplat_server.api.admin import admin_app
from fedplat_server.api.buffers import BufferRoutes
from fedplat_server.api.guard import Guard
from fedplat_server.api.routes import SiloRoutes
from fedplat_server.api.wake import Bell, Waker
from fedplat_server.coordinator import Coordinator
from fedplat_server.registry import Registry
from fedplat_server.road import Road
from fedplat_server.settings import Settings
from fedplat_server.store import Store, open_store
from fedplat_server.superlink import Link
from fedplat_server.superlink.fleet import FleetApp

_log = logging.getLogger(__name__)
_SEEN_EVERY_S = 30.0


@dataclass(frozen=True)
class ServerParts:
    """Everything that a running server is made of."""

    settings: Settings
    store: Store
    admin: Administration
    coordinator: Coordinator
    registry: Registry
    bell: Bell
    tls: TlsFiles
    silo_app: Callable[[Callable[[], bool]], ASGIApp]


def assemble(home: ServerHome, settings: Settings) -> ServerParts:
    """Keys, certificates, database and all parts, wired. The home must be locked by the caller."""
    authority = ensure_authority(home)
    tls = ensure_tls(home, settings.names)
    store = open_store(settings.database_url(home))
    registry, bell = Registry(), Bell()
    link = Link(on_message=bell.ring)
    road = Road(on_trouble=link.wake_runs)
    pem = authority.certificate_pem
    coordinator = Coordinator(
        home, store, link, road, registry, on_end=lambda _run: bell.ring_all(), ca_fingerprint=ca_fingerprint(pem)
    )
    registry.on_change = link.wake_runs
    identity = ServerIdentity(settings.address, ca_fingerprint(pem), public_pem(ensure_signing_key(home)))
    admin = Administration(identity, store, link, registry, coordinator)
    admin.admit_enrolled()

    def silo_app(closing: Callable[[], bool]) -> ASGIApp:
        waker = Waker(registry, bell, link.has_work, coordinator.is_live, closing)
        routes = SiloRoutes(pem, BufferRoutes(road, registry), registry, waker, admin.enrol, admin.leave)
        return Guard(FleetApp(link), routes.app(), registry, NonceCache())

    return ServerParts(settings, store, admin, coordinator, registry, bell, tls, silo_app)


class _Uvicorn(uvicorn.Server):
    """Signals are the process's business, not uvicorn's."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


def serve(home: ServerHome, given: dict[str, object], announce: Callable[[ServerParts, list[str]], None]) -> None:
    """Run until SIGINT or SIGTERM. `announce` is called when silos can connect, with the runs taken up again."""
    home.create()
    with ExitStack() as stack:
        stack.enter_context(home.lock())
        settings = Settings.remembered(home, **given)
        listening = stack.enter_context(_listen(settings))
        admin_socket = stack.enter_context(_listen_admin(home))
        parts = assemble(home, settings)
        stack.callback(parts.store.close)
        settings.remember(home)  # not before: what does not work must not come back at the next start
        asyncio.run(_serve(parts, listening, admin_socket, announce))


async def _serve(
    parts: ServerParts,
    listening: socket.socket,
    admin_socket: socket.socket,
    announce: Callable[[ServerParts, list[str]], None],
) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    parts.bell.attach(loop)
    # Before anybody is answered: a silo drops what it has of a run that the server does not know.
    resumed = parts.coordinator.recover()
    silos = _Uvicorn(_config(parts.silo_app(stopping.is_set), parts.tls))
    admin = _Uvicorn(_config(admin_app(parts.admin), None))
    tasks = [
        asyncio.create_task(silos.serve(sockets=[listening])),
        asyncio.create_task(admin.serve(sockets=[admin_socket])),
        asyncio.create_task(_remember_seen(parts)),
    ]
    while not (silos.started and admin.started):
        await asyncio.sleep(0.01)
    announce(parts, resumed)
    await stopping.wait()
    silos.should_exit = admin.should_exit = True
    parts.bell.ring_all()
    await asyncio.to_thread(parts.coordinator.close)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await _note_seen(parts)


async def _remember_seen(parts: ServerParts) -> None:
    while True:
        await asyncio.sleep(_SEEN_EVERY_S)
        await _note_seen(parts)


async def _note_seen(parts: ServerParts) -> None:
    try:
        await asyncio.to_thread(parts.store.silos.seen, parts.registry.last_seen())
    except StoreError as error:  # a nicety: the next time will do
        _log.warning("when silos were last heard is not noted: %s", error.message)


def _config(app: ASGIApp, tls: TlsFiles | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=75,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=str(tls.key) if tls else None,
    )


@contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    """Bound before anything is made: a port in use is an error at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # asyncio sets it only on sockets that it made itself; without it every answer waits 40 ms for an ACK
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.bind((settings.host, settings.port))
            sock.listen(1024)
        except OSError as error:
            raise ConflictError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
                hint="another program may use the port; choose one with --port, or a bind address with --host",
            ) from None
        yield sock


@contextmanager
def _listen_admin(home: ServerHome) -> Iterator[socket.socket]:
    path = home.admin_socket
    path.unlink(missing_ok=True)  # the home is locked: whoever made it is dead
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        old = os.umask(0o177)
        try:
            sock.bind(str(path))
        except OSError as error:
            raise HomeError(f"cannot make the administrator's socket {path}: {error.strerror}") from None
        finally:
            os.umask(old)
        sock.listen(64)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)
