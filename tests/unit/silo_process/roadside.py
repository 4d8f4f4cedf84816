"""The server's side of the road with faults to order, and an HTTP proxy."""

from __future__ import annotations

import hashlib
import select
import socket
import socketserver
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fedplat.bufferfiles import DamagedPieceError, Incoming
from fedplat.errors import IdentityError
from fedplat.home import ServerHome
from fedplat.identity import NonceCache, ensure_authority, ensure_tls, new_key, parse_headers, verify_request
from fedplat.wire.buffers import PIECE_BYTES, BufferRef
from fedplat.wire.http import BUFFERS, Announcement, Problem, Standing
from fedplat_silo.road import Road
from fedplat_silo.transport import Clock, Signer, tls_for

KEY = new_key()
CHUNK_BYTES = 50_000


class Cut(Exception):
    """The connection ends here."""


@dataclass
class RoadServer:
    """`cuts`: the connection is cut when so many bytes of bodies have passed in all. `damage`: so many have passed
    when one of them is turned over. `refusals`: (method, status, word) for the next request of that method, before
    its body is read. `pause_s` after each chunk. `on_chunk` hears how much has passed."""

    folder: Path
    ca_pem: str = ""
    port: int = 0
    offers: dict[str, bytes] = field(default_factory=dict)
    expected: set[tuple[str, int]] = field(default_factory=set)
    cuts: list[int] = field(default_factory=list)
    damage: list[int] = field(default_factory=list)
    refusals: list[tuple[str, int, str]] = field(default_factory=list)
    pause_s: float = 0.0
    passed_bytes: int = 0
    num_connections: int = 0
    seen: list[str] = field(default_factory=list)
    on_chunk: Callable[[int], None] = lambda _passed: None
    clock_offset_s: float = 0.0
    nonces: NonceCache = field(default_factory=NonceCache)
    uploads: dict[tuple[str, int], Incoming] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def road(self) -> Road:
        return Road(self.address, tls_for(self.ca_pem), Signer("hospital-a", KEY, Clock()))

    def content(self, run: str, step: int) -> bytes:
        assert self.uploads[run, step].is_complete
        return (self.folder / f"{run}-{step}").read_bytes()

    def passes(self, data: bytes) -> bytes:
        """The part of a chunk that comes through, perhaps with a byte turned over; raises Cut with nothing left."""
        if self.cuts and self.passed_bytes + len(data) > self.cuts[0]:
            data = data[: self.cuts[0] - self.passed_bytes]
            if not data:
                self.cuts.pop(0)
                raise Cut
        if self.damage and self.passed_bytes <= self.damage[0] < self.passed_bytes + len(data):
            place = self.damage.pop(0) - self.passed_bytes
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        self.passed_bytes += len(data)
        self.on_chunk(self.passed_bytes)
        time.sleep(self.pause_s)
        return data

    def refuse(self, method: str) -> tuple[int, str] | None:
        for refusal in self.refusals:
            if refusal[0] == method:
                self.refusals.remove(refusal)
                return refusal[1:]
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    road: RoadServer

    def setup(self) -> None:
        super().setup()
        self.road.num_connections += 1

    def _serve(self) -> None:
        self.road.seen.append(f"{self.command} {self.path}")
        signed = parse_headers({k.lower(): v for k, v in self.headers.items()})
        now_s = time.time() + self.road.clock_offset_s
        try:
            verify_request(signed, KEY.public_key(), self.command, self.path, now_s, self.road.nonces)
        except IdentityError:
            self._refuse(401, "clock_skew")
            return
        refused = self.road.refuse(self.command)
        if refused is not None:
            self._refuse(*refused)
            return
        try:
            getattr(self, f"_{self.command.lower()}")(signed.body_size_bytes, signed.body_sha256)
        except DamagedPieceError:
            self._refuse(400, "damaged")
        except (Cut, OSError):
            self.close_connection = True
            with suppress(OSError):
                socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    do_GET = do_POST = do_PUT = _serve  # noqa: N815

    def _get(self, _size: int, _sha256: str) -> None:
        url = urlsplit(self.path)
        data = self.road.offers.get(url.path.rpartition("/")[2])
        if data is None:
            self._refuse(409, "conflict")
            return
        rest = memoryview(data)[int(parse_qs(url.query)["offset"][0]) :]
        self._head(200, len(rest))
        while rest:
            sent = self.road.passes(bytes(rest[:CHUNK_BYTES]))
            self.wfile.write(sent)
            rest = rest[len(sent) :]

    def _post(self, size: int, sha256: str) -> None:
        body = self.rfile.read(size)
        assert hashlib.sha256(body).hexdigest() == sha256
        asked = Announcement.model_validate_json(body)
        key = asked.run, asked.step
        if key not in self.road.expected:
            self._refuse(409, "conflict")
            return
        if key in self.road.uploads:
            self.road.uploads[key].close()
        self.road.uploads[key] = Incoming(self.road.folder / f"{asked.run}-{asked.step}", asked.buffer)
        self._stands(self.road.uploads[key])

    def _put(self, size: int, sha256: str) -> None:
        url = urlsplit(self.path)
        run, step = url.path.removeprefix(f"{BUFFERS}/").split("/")
        incoming = self.road.uploads[run, int(step)]
        start = int(parse_qs(url.query)["offset"][0])
        assert start == incoming.have_bytes
        assert size == min(incoming.ref.size_bytes, (start // PIECE_BYTES + 1) * PIECE_BYTES) - start
        assert self.headers["content-length"] == str(size)
        digest = hashlib.sha256()
        while size:
            chunk = self.rfile.read(min(size, CHUNK_BYTES))
            if not chunk:
                raise Cut
            size -= len(chunk)
            digest.update(chunk)
            while chunk:
                taken = self.road.passes(chunk)
                incoming.write(taken)
                chunk = chunk[len(taken) :]
        assert digest.hexdigest() == sha256
        self._stands(incoming)

    def _stands(self, incoming: Incoming) -> None:
        self._answer(200, Standing(have_bytes=incoming.have_bytes).model_dump_json().encode())

    def _refuse(self, status: int, word: str) -> None:
        self.close_connection = True
        problem = Problem.model_validate({"error": word, "message": "no"})
        self._answer(status, problem.model_dump_json().encode())

    def _answer(self, status: int, content: bytes) -> None:
        self._head(status, len(content))
        self.wfile.write(content)

    def _head(self, status: int, size_bytes: int) -> None:
        self.send_response_only(status)
        self.send_header("date", self._date())
        self.send_header("content-length", str(size_bytes))
        self.end_headers()

    def _date(self) -> str:
        return self.date_time_string(int(time.time() + self.road.clock_offset_s))

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that break are what these tests are about; a wrong request shows in what did not arrive."""


@contextmanager
def road_server(folder: Path) -> Iterator[RoadServer]:
    home = ServerHome(folder / "server")
    home.create()
    made = RoadServer(folder, ensure_authority(home).certificate_pem)
    files = ensure_tls(home, ("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"road": made}))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made.port = server.server_port
    with _serving(server):
        yield made
    for incoming in made.uploads.values():
        incoming.close()


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Proxy:
    """Opens tunnels for those who know the password, and ends those that are silent for `idle_s`."""

    credentials: str
    idle_s: float
    port: int = 0
    num_tunnels: int = 0
    num_refused: int = 0
    num_idle: int = 0

    def tunnel(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096) or b"\r\n\r\n"
        lines = head.decode("ascii").split("\r\n")
        method, _, target = lines[0].partition(" ")
        basic = b64encode(self.credentials.encode()).decode()
        if method != "CONNECT" or f"proxy-authorization: Basic {basic}".lower() not in map(str.lower, lines):
            self.num_refused += 1
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            return
        host, _, port = target.split(" ")[0].partition(":")
        with socket.create_connection((host, int(port))) as server:
            self.num_tunnels += 1
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            ready = select.select((client, server), (), (), self.idle_s)[0]
            if not ready:
                self.num_idle += 1
                return
            for one in ready:
                data = one.recv(1 << 16)
                if not data:
                    return
                (server if one is client else client).sendall(data)


@contextmanager
def http_proxy(credentials: str = "silo:s3cret", idle_s: float = 60.0) -> Iterator[Proxy]:
    made = Proxy(credentials, idle_s)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                made.tunnel(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    made.port = server.server_address[1]
    with _serving(server):
        yield made


def name_of(data: bytes) -> BufferRef:
    pieces = (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))
    return BufferRef(size_bytes=len(data), pieces=tuple(hashlib.sha256(piece).hexdigest() for piece in pieces))
