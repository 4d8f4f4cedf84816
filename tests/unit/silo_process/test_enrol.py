from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedplat import durable
from fedplat.errors import ConnectionLostError, IdentityError, NotFoundError, WireError
from fedplat.home import SiloHome
from fedplat.identity import Label, fingerprint, load_public, new_key, save_key, secret_hash, verify
from fedplat_silo.enrol import enrol
from fedplat_silo.membership import forget_membership, load_membership
from fedplat_silo.transport import CertificateError
from tests.unit.silo_process.tls import Answer, TlsServer, tls_server

ENROL = "/v1/fedplat/enrol"


class Registrar:
    """The server's side of an enrolment: the same secret again from the same key only."""

    def __init__(self, server: TlsServer) -> None:
        self.server = server
        self.keys: list[str] = []
        server.routes[ENROL] = self.answer

    def answer(self, _headers: dict[str, str], body: bytes) -> Answer:
        request = json.loads(body)
        invite = self.server.invite()
        assert bytes.fromhex(request["secret"]) == invite.secret
        public = load_public(request["public_key"])
        fields = invite.ca_fingerprint, request["silo"], secret_hash(invite.secret), request["public_key"]
        verify(public, Label.ENROL, bytes.fromhex(request["proof"]), *fields)
        self.keys.append(fingerprint(public))
        if len(set(self.keys)) > 1:
            return 403, {"error": "refused", "message": "the invite was used already", "hint": "ask for another"}
        return 200, {"silo": request["silo"], "node_id": "17", "server_key": "pem"}


def test_an_invite_makes_a_member(home: SiloHome, server: TlsServer) -> None:
    registrar = Registrar(server)
    enrol(home, server.invite())
    member = load_membership(home)
    assert (member.place.address, member.place.node_id) == (server.address, 17)
    assert member.ca_pem == server.ca_pem
    assert [fingerprint(member.key.public_key())] == registrar.keys
    files = sorted(path.name for path in home.identity.iterdir())
    assert files == ["ca.pem", "key.pem", "server.json"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in home.identity.iterdir())


def test_the_same_invite_again_does_nothing(home: SiloHome, server: TlsServer) -> None:
    Registrar(server)
    enrol(home, server.invite())
    server.seen.clear()
    enrol(home, server.invite())
    assert server.seen == []


def test_another_address_may_be_given(home: SiloHome, server: TlsServer) -> None:
    Registrar(server)
    enrol(home, server.invite(server="gone.invalid:1"), server.address)
    assert load_membership(home).place.address == server.address


def test_an_invite_for_another_silo_is_refused_before_any_request(home: SiloHome, server: TlsServer) -> None:
    with pytest.raises(IdentityError, match="hospital-b, not hospital-a"):
        enrol(home, server.invite(silo="hospital-b"))
    assert server.seen == []


def test_another_ca_never_sees_the_secret(home: SiloHome, server: TlsServer) -> None:
    with pytest.raises(IdentityError, match="not the one in the invite"):
        enrol(home, server.invite(ca_fingerprint="0" * 64))
    assert server.seen == ["/v1/fedplat/ca"]


def test_somebody_in_between_who_shows_the_right_ca_never_sees_the_secret(
    home: SiloHome, server: TlsServer, tmp_path: Path
) -> None:
    with tls_server(tmp_path / "mitm") as mitm:
        mitm.ca_pem = server.ca_pem
        Registrar(mitm)
        with pytest.raises(CertificateError, match="not signed by the CA"):
            enrol(home, server.invite(), mitm.address)
        assert mitm.seen == ["/v1/fedplat/ca"]


def test_a_certificate_for_another_name_says_so(home: SiloHome, tmp_path: Path) -> None:
    with (
        tls_server(tmp_path / "other", names=("fed.example.org",)) as server,
        pytest.raises(CertificateError, match="is not for the address localhost"),
    ):
        enrol(home, server.invite())


def test_the_servers_reason_is_what_a_person_reads(home: SiloHome, server: TlsServer) -> None:
    problem = {"error": "refused", "message": "the invite expired \x1b[31m an hour ago", "hint": "ask for another"}
    server.routes[ENROL] = lambda _headers, _body: (403, problem)
    with pytest.raises(IdentityError, match=r"the invite expired  \[31m an hour ago") as caught:
        enrol(home, server.invite())
    assert caught.value.hint == "ask for another"
    with pytest.raises(NotFoundError, match="has not joined"):
        load_membership(home)


def test_what_is_not_a_fedplat_server_is_recognised(home: SiloHome, server: TlsServer) -> None:
    server.routes["/v1/fedplat/ca"] = lambda _headers, _body: (404, "<html>")
    with pytest.raises(WireError, match="not as a fedplat server does"):
        enrol(home, server.invite())
    server.routes["/v1/fedplat/ca"] = lambda _headers, _body: (502, "<html>")
    with pytest.raises(ConnectionLostError):
        enrol(home, server.invite())
    server.routes["/v1/fedplat/ca"] = lambda _headers, _body: (200, "x" * 2_000_000)
    with pytest.raises(WireError, match="too long"):
        enrol(home, server.invite())


class _Crash(BaseException):
    pass


class _Crashing(durable.Filesystem):
    """The process dies at the nth rename: after that nothing more happens on disk."""

    def __init__(self, renames: int) -> None:
        self.left = renames

    def rename(self, source: Path, target: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Crash
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        if self.left < 0:
            raise _Crash
        super().unlink(path)


def test_a_crash_anywhere_is_cured_by_the_same_invite(
    tmp_path: Path, server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_crashes = 0
    for renames in range(10):
        home = SiloHome(tmp_path / str(renames), "hospital-a")
        home.create()
        registrar = Registrar(server)
        monkeypatch.setattr(durable, "filesystem", _Crashing(renames))
        try:
            enrol(home, server.invite())
        except _Crash:
            num_crashes += 1
        monkeypatch.undo()
        enrol(home, server.invite())
        assert set(registrar.keys) == {fingerprint(load_membership(home).key.public_key())}
    assert num_crashes == 4, "the pending key, then key.pem, ca.pem and server.json"


@pytest.mark.parametrize("file", ["ca", "key"])
def test_half_an_enrolment_is_noticed(home: SiloHome, server: TlsServer, short_path: Path, file: str) -> None:
    Registrar(server)
    enrol(home, server.invite())
    if file == "ca":
        home.ca_certificate.write_text(_other_ca(short_path))
    else:
        save_key(new_key(), home.key)
    with pytest.raises(IdentityError, match="interrupted") as caught:
        load_membership(home)
    assert "--invite" in caught.value.hint


def test_leaving_forgets_the_key(home: SiloHome, server: TlsServer) -> None:
    Registrar(server)
    enrol(home, server.invite())
    forget_membership(home)
    assert list(home.identity.iterdir()) == []
    with pytest.raises(NotFoundError, match="has not joined"):
        load_membership(home)


def _other_ca(folder: Path) -> str:
    with tls_server(folder) as other:
        return other.ca_pem
