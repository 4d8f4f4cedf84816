"""Homes as a healthy machine has them, to be broken in one place each, and the line that a check answers with."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from fedplat.doctor import Asked, Level, Line, Subject, examine
from fedplat.durable import write_atomic
from fedplat.home import ServerHome, SiloHome
from fedplat.identity import (
    Certified,
    TlsFiles,
    ca_fingerprint,
    ensure_signing_key,
    ensure_tls,
    fingerprint,
    issue_tls,
    new_key,
    public_pem,
)
from fedplat.identity.authority import AUTHORITY_LIFE
from fedplat.identity.keys import private_pem
from fedplat_server.settings import Settings
from fedplat_server.store import open_store
from fedplat_silo.membership import Membership, Place, save_membership
from fedplat_silo.policy import load_policy

SILO = "hospital-a"


def line(subject: Subject, check: str) -> Line:
    """What a check says, after all that it needs and nothing else."""
    known = {each.name: each for each in subject.checks}
    wanted = [check]
    for name in wanted:
        wanted += [need for need in known[name].needs if need not in wanted]
    chosen = tuple(each for each in subject.checks if each.name in wanted)
    return next(found for found in examine(replace(subject, checks=chosen)) if found.check == check)


def expect(found: Line, level: Level, *words: str) -> None:
    """The finding is that one, it is said in these words, and there is something to do unless all is well."""
    text = f"{found.found}\n{found.todo}"
    assert found.level == level, text
    for word in words:
        assert word in text
    assert (found.todo == "") == (level in (Level.OK, Level.SKIPPED)), text
    assert "Traceback" not in text


def enrolled(root: Path, address: str = "localhost:1", ca_pem: str | None = None) -> SiloHome:
    """A silo as an enrolment at that address leaves it."""
    home = SiloHome(root, SILO)
    home.create()
    if ca_pem is None:
        ca_pem = stranger_ca("fedplat CA test", datetime.now(UTC)).certificate_pem
    key = new_key()
    place = Place(
        address=address,
        node_id=1,
        server_key=public_pem(new_key()),
        ca_fingerprint=ca_fingerprint(ca_pem),
        key_fingerprint=fingerprint(key.public_key()),
        invite="0" * 64,
    )
    save_membership(home, Membership(SILO, place, ca_pem, key))
    load_policy(home.policy)
    return home


def silo(home: SiloHome, **asked: object) -> Subject:
    """The doctor's view of it."""
    from fedplat_silo.doctor import subjects

    return next(subjects(Asked(home.root, silo=home.name, **asked)))  # type: ignore[arg-type]


def server(home: ServerHome) -> Subject:
    """The doctor's view of it."""
    from fedplat_server.doctor import subjects

    return next(subjects(Asked(home.root, server=True)))


def served(root: Path, port: int) -> ServerHome:
    """A server as its first start leaves it, not running."""
    home = ServerHome(root)
    home.create()
    settings = Settings(host="127.0.0.1", port=port, names=("localhost",))
    ensure_tls(home, settings.names)
    ensure_signing_key(home)
    open_store(settings.database_url(home)).close()
    settings.remember(home)
    return home


def stranger_ca(name: str, begin: datetime) -> Certified:
    """A CA that is no fedplat server's, as a proxy that opens TLS has one."""
    key: ec.EllipticCurvePrivateKey = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    return Certified(key, certificate)


def tls_files(folder: Path, authority: Certified, issued: datetime, name: str = "localhost") -> TlsFiles:
    """A certificate of that CA, issued then."""
    certified = issue_tls(authority, (name,), issued)
    path = folder / "tls.pem"
    write_atomic(path, private_pem(certified.key) + certified.certificate_pem.encode())
    return TlsFiles(path, path)


def write_patients(path: Path, rows: Iterable[tuple[object, ...]]) -> Path:
    """A dataset with the columns that `STUDY` asks for."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("pid", "age", "sex", "ill"), *rows])
    return path


def patients(num: int = 60) -> list[tuple[object, ...]]:
    """Nothing is odd about them."""
    return [(f"p{i // 2}", 30 + i % 50, "fm"[i % 2], ("no", "yes")[i % 3 == 0]) for i in range(num)]


def study(path: Path, *, rounds: str = "timeout_s = 600", training: str = "", more: str = "") -> Path:
    """A spec whose data are `write_patients`'."""
    path.write_text(STUDY.format(rounds=rounds, training=training or "epochs = 1\nbatch_size = 16", more=more))
    return path


STUDY = """
name = "heart"
[task]
name = "tabular"
[task.options]
patient = "pid"
[task.options.target]
column = "ill"
categories = ["no", "yes"]
[[task.options.features]]
column = "age"
kind = "numeric"
range = [0, 100]
[[task.options.features]]
column = "sex"
kind = "categorical"
categories = ["f", "m"]
[data]
name = "heart"
test_share = 0.2
[rounds]
count = 2
{rounds}
[training]
{training}
{more}
"""

PRIVATE = """
[strategy]
weighting = "uniform"
[privacy]
mode = "record"
metrics = "none"
epsilon = 8.0
delta = 1e-3
"""
