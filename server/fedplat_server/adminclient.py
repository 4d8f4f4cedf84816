"""How the commands talk to the running server: HTTP over its Unix socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fedplat.errors import ConnectionLostError, FedplatError
from fedplat.home import ServerHome, fedplat_home

View = dict[str, object]


class AdminClient:
    """Calls of the administrator's routes. FedplatError carries what the server answered."""

    def __init__(self, http: httpx.Client, home: ServerHome) -> None:
        self._http = http
        self._home = home

    def get(self, path: str, **query: str) -> object:
        """The JSON at `path`."""
        return self._send("GET", path, params=query).json()

    def view(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`."""
        found = self.get(path)
        assert isinstance(found, dict)
        return found

    def post(self, path: str, body: object = None) -> object:
        """The JSON answer to a JSON body."""
        return self._send("POST", path, json=body).json()

    def post_bytes(self, path: str, content: bytes) -> object:
        """The JSON answer to raw bytes."""
        return self._send("POST", path, content=content).json()

    def download(self, path: str, target: Path) -> None:
        """Stream what is at `path` into a file."""
        with self._errors(), self._http.stream("GET", path) as response:
            _check(response)
            with target.open("wb") as file:
                for chunk in response.iter_bytes(1 << 20):
                    file.write(chunk)

    def _send(self, method: str, path: str, **parts: object) -> httpx.Response:
        with self._errors():
            response = self._http.request(method, path, **parts)  # type: ignore[arg-type]
        _check(response)
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise ConnectionLostError(
                f"no server answers in {self._home.path} ({type(error).__name__})",
                hint="start it with: fedplat server start   (or name its home with --home)",
            ) from None


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        body = response.json()
        message, hint = str(body["message"]), str(body["hint"])
    except (ValueError, KeyError, TypeError):
        message, hint = f"the server answered {response.status_code}", "its log says why"
    raise FedplatError(message, hint=hint)


@contextmanager
def connect(home: str | None) -> Iterator[AdminClient]:
    """A client for the server of that home."""
    server_home = ServerHome(fedplat_home(home))
    transport = httpx.HTTPTransport(uds=str(server_home.admin_socket))
    with httpx.Client(transport=transport, base_url="http://server", timeout=60) as http:
        yield AdminClient(http, server_home)
