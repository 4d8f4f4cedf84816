from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fedplat.home import ServerHome
from fedplat.identity import Invite, TlsFiles, ca_fingerprint, ensure_authority, ensure_tls

Answer = tuple[int, object]
Route = Callable[[dict[str, str], bytes], Answer]


@dataclass
class TlsServer:
    """A server with a CA of its own and routes of the test's. `clock_offset_s` shifts its Date header."""

    ca_pem: str
    port: int = 0
    routes: dict[str, Route] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    clock_offset_s: float = 0.0

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def invite(self, **changes: object) -> Invite:
        facts = {
            "server": self.address,
            "ca_fingerprint": ca_fingerprint(self.ca_pem),
            "silo": "hospital-a",
            "secret": b"0123456789abcdef",
            "expires_at": int(time.time()) + 60,
        }
        return Invite(**(facts | changes))  # type: ignore[arg-type]

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.seen.append(path)
        if path == "/v1/fedplat/ca" and path not in self.routes:
            return 200, self.ca_pem
        return self.routes[path](headers, body)


@contextmanager
def tls_server(
    folder: Path, names: tuple[str, ...] = ("localhost",), files: TlsFiles | None = None
) -> Iterator[TlsServer]:
    """`files`: another certificate than a fedplat server would make."""
    home = ServerHome(folder)
    home.create()
    made = TlsServer(ensure_authority(home).certificate_pem)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            status, answer = made.answer(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response_only(status)
            self.send_header("date", formatdate(time.time() + made.clock_offset_s, usegmt=True))
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    files = files or ensure_tls(home, names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    server = _QuietServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that refuses our certificate hangs up; that is what some tests are about."""
