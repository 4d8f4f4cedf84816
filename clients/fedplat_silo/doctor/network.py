"""Checks of the way to the server, one layer after the other, by the connections that the silo itself uses."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection
from urllib.parse import SplitResult, urlsplit

from cryptography import x509
from pydantic import ValidationError

from fedplat import __version__
from fedplat.doctor import Check, Finding, failed, ok, warning
from fedplat.doctor.certificates import check_expiry, is_fedplat_authority
from fedplat.doctor.machine import resolve
from fedplat.identity.requests import WINDOW_S
from fedplat.wire.http import Health, Known
from fedplat_silo.console import printable
from fedplat_silo.doctor.visit import Visit
from fedplat_silo.line import CONNECT_TIMEOUT_S, authorization, connection_to, proxy_for
from fedplat_silo.transport import (
    CLOCK_TOLERANCE_S,
    CertificateError,
    Clock,
    Server,
    Signer,
    connection_errors,
    tls_for,
    tls_for_nobody,
)

_TIMEOUT_S = 40.0  # above the connections' own


def checks(visit: Visit) -> Iterator[Check]:
    """From the name of the server to what it thinks of this silo."""
    way = _Way(visit)
    yield Check("proxy", lambda: _proxy(way), ("enrolment",), _TIMEOUT_S)
    yield Check("dns", lambda: _dns(way), ("proxy",))
    yield Check("port", lambda: _port(way), ("dns",), _TIMEOUT_S)
    yield Check("tls", lambda: _tls(way), ("port",), _TIMEOUT_S)
    yield Check("certificate", lambda: _certificate(way), ("tls",), _TIMEOUT_S)
    yield Check("server", lambda: _server(way), ("tls",), _TIMEOUT_S)
    yield Check("clock", lambda: _clock(way), ("server",), _TIMEOUT_S)
    yield Check("membership", lambda: _membership(way), ("server",), _TIMEOUT_S)


@dataclass(frozen=True)
class _Way:
    visit: Visit

    @cached_property
    def target(self) -> tuple[str, int]:
        parts = urlsplit(f"//{self.visit.address}")
        return str(parts.hostname), int(parts.port or 0)

    @cached_property
    def proxy(self) -> SplitResult | None:
        return proxy_for(*self.target)

    def ask(self, name: str, signer: Signer | None = None) -> bytes:
        server = Server(self.visit.address, tls_for(self.visit.membership.ca_pem), signer)
        try:
            return server.get(name)
        finally:
            server.close()

    @cached_property
    def health(self) -> tuple[Health, float]:
        """What the server says of itself, and how many seconds this machine's clock is ahead of its."""
        begun_s = time.time()
        answer = self.ask("health")
        middle_s = (begun_s + time.time()) / 2
        found = Health.model_validate_json(answer)
        return found, middle_s - found.time


def _proxy(way: _Way) -> Finding:
    proxy = way.proxy
    if proxy is None:
        return ok("none is set for this server (HTTPS_PROXY, ALL_PROXY, NO_PROXY)")
    name = f"{proxy.hostname}:{proxy.port or 80}"
    if proxy.scheme != "http" or proxy.hostname is None:
        return failed(
            f"the environment names a proxy of the kind {proxy.scheme}://",
            "Name an http:// proxy in HTTPS_PROXY, or the server in NO_PROXY.",
        )
    try:
        socket.create_connection((proxy.hostname, proxy.port or 80), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return failed(
            f"the proxy {name} does not answer: {error.strerror or error}",
            f"Correct HTTPS_PROXY, or set NO_PROXY={way.target[0]} if the server is reached without one.",
        )
    return ok(f"{name} answers")


def _dns(way: _Way) -> Finding:
    host = way.target[0]
    if way.proxy is not None:
        return ok(f"{host} is left to the proxy")
    try:
        return ok(f"{host} is {', '.join(resolve(host))}")
    except OSError as error:
        return failed(
            f"the server's name {host} is not known here: {error.strerror or error}",
            "Is it spelt as in the invite? Ask the network's administrator, or put it into /etc/hosts.",
        )


def _port(way: _Way) -> Finding:
    host, port = way.target
    try:
        if way.proxy is None:
            socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
        else:
            _tunnel(way.proxy, host, port)
    except OSError as error:
        by = " through the proxy" if way.proxy else ""
        return failed(
            f"{host}:{port} cannot be reached{by}: {printable(str(error.strerror or error), 200)}",
            "Is the server up? Else a firewall is in between: let it open outbound TCP to that port.",
        )
    return ok(f"{host}:{port} accepts connections")


def _tunnel(proxy: SplitResult, host: str, port: int) -> None:
    connection = HTTPConnection(str(proxy.hostname), proxy.port or 80, timeout=CONNECT_TIMEOUT_S)
    connection.set_tunnel(host, port, authorization(proxy))
    try:
        connection.connect()
    finally:
        connection.close()


def _tls(way: _Way) -> Finding:
    member, address = way.visit.membership, way.visit.address
    try:
        _shown_certificate(way, member.ca_pem)
    except CertificateError as error:
        shown = _shown_certificate(way, None)
        issuer = printable(shown.issuer.rfc4514_string())
        if _is_by(shown, x509.load_pem_x509_certificate(member.ca_pem.encode())):
            return failed(error.message, error.hint)
        if is_fedplat_authority(issuer):
            return failed(
                f"{address} is a fedplat server of another federation: its certificate is by {issuer}",
                "Is the address right? If the server was set up anew, ask for a new invite.",
            )
        return failed(
            f"something on the way to {address} opens TLS: it shows a certificate by {issuer}, not by the "
            "federation's CA",
            f"Ask the network's administrator to exempt {address} from TLS inspection.",
        )
    return ok("the server's certificate is by the CA of this silo's federation")


def _shown_certificate(way: _Way, ca_pem: str | None) -> x509.Certificate:
    """What is at the address; with `ca_pem` only if that CA has signed it. Raises as `Line`."""
    with connection_errors(way.visit.address):
        connection = connection_to(way.visit.address, tls_for(ca_pem) if ca_pem else tls_for_nobody())
        try:
            connection.connect()
            return x509.load_der_x509_certificate(connection.sock.getpeercert(binary_form=True) or b"")
        finally:
            connection.close()


def _is_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """By name only: why it is not trusted all the same is what TLS has said."""
    return certificate.issuer == authority.subject


def _certificate(way: _Way) -> Finding:
    ca_pem = way.visit.membership.ca_pem
    return check_expiry(_shown_certificate(way, ca_pem), x509.load_pem_x509_certificate(ca_pem.encode()))


def _server(way: _Way) -> Finding:
    try:
        health = way.health[0]
    except ValidationError:
        return failed(f"what answers at {way.visit.address} is no fedplat server", "Check the address and the proxy.")
    if health.fedplat != __version__:
        return failed(
            f"the server runs fedplat {printable(health.fedplat, 40)}, this silo {__version__}",
            "Install the same version on both sides.",
        )
    return ok(f"fedplat {health.fedplat} answers")


def _clock(way: _Way) -> Finding:
    offset_s = way.health[1]
    where = f"{abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} the server's"
    if abs(offset_s) > WINDOW_S:
        return failed(
            f"this machine's clock is {where}; the server allows {WINDOW_S:.0f} s",
            "Set the clock: timedatectl set-ntp true. A silo signs with the server's time while it knows it.",
        )
    if abs(offset_s) > CLOCK_TOLERANCE_S:
        return warning(
            f"this machine's clock is {where}; from {CLOCK_TOLERANCE_S:g} s on the silo corrects for it, "
            f"the limit is {WINDOW_S:.0f} s",
            "Set the clock: timedatectl set-ntp true",
        )
    return ok(f"{where}; {WINDOW_S:.0f} s are allowed")


def _membership(way: _Way) -> Finding:
    member = way.visit.membership
    answer = way.ask("membership", Signer(member.silo, member.key, Clock(lambda: time.time() - way.health[1])))
    known = Known.model_validate_json(answer)
    return ok(f"the server knows this silo's key{'; its process is connected' if known.connected else ''}")
