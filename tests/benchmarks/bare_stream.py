"""A round's bytes over a bare web server with TLS: down and up once a silo, nothing verified, nothing kept. The best
that this machine can do with these parts."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import uvicorn

PIECE = 4 << 20


async def app(scope, receive, send):  # type: ignore[no-untyped-def]
    """GET /N: N bytes. PUT: takes what comes."""
    if scope["method"] == "GET":
        left = int(scope["path"][1:])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(left).encode())]})
        piece = bytes(512 * 1024)
        while left:
            part = piece[:left]
            left -= len(part)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def bare_round_s(floats: int, num_silos: int) -> float:
    """Seconds for one round's bytes, all silos at once, each in a process of its own; the best of two."""
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder) / "cert.pem", Path(folder) / "key.pem"
        _certificate(cert, key)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                host="127.0.0.1",
                port=0,
                log_level="error",
                lifespan="off",
                http="httptools",
                ssl_certfile=str(cert),
                ssl_keyfile=str(key),
            )
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            return min(_round(port, floats * 4, num_silos) for _ in range(2))
        finally:
            server.should_exit = True
            thread.join()


def _round(port: int, num_bytes: int, num_silos: int) -> float:
    words = [sys.executable, __file__, str(port), str(num_bytes)]
    silos = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(num_silos)]
    for silo in silos:
        assert silo.stdout
        silo.stdout.readline()
    begun = time.perf_counter()
    for silo in silos:
        assert silo.stdin
        silo.stdin.close()
    for silo in silos:
        assert silo.wait() == 0
    return time.perf_counter() - begun


def _silo(port: int, num_bytes: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    server = http.client.HTTPSConnection("127.0.0.1", port, context=context)
    server.connect()
    piece = memoryview(bytearray(PIECE))
    print("ready", flush=True)
    sys.stdin.read()
    server.request("GET", f"/{num_bytes}")
    answer = server.getresponse()
    while answer.readinto(piece):
        pass
    for start in range(0, num_bytes, PIECE):
        server.request("PUT", "/", body=piece[: min(PIECE, num_bytes - start)])
        server.getresponse().read()


def _certificate(cert: Path, key: Path) -> None:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    signed = (
        builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(private, hashes.SHA256())
    )
    cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


if __name__ == "__main__":
    _silo(int(sys.argv[1]), int(sys.argv[2]))
