from __future__ import annotations

import io
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedplat.errors import IdentityError, NotFoundError, WireError
from fedplat.identity import Invite, invites, read_invite, secret_hash

NOW_S = 1_760_000_000.5
CA = "0123456789abcdef" * 4
INVITE = Invite.new("fed.example.org:8443", CA, "hospital-a", NOW_S)
LINE = INVITE.encode()

INVITES = st.builds(
    Invite,
    server=st.sampled_from(["fed.example.org:8443", "127.0.0.1:1", "[::1]:65535", "a:80"]),
    ca_fingerprint=st.binary(min_size=32, max_size=32).map(bytes.hex),
    silo=st.text("abcxyz0189-", max_size=62).map("a".__add__),
    secret=st.binary(min_size=16, max_size=16),
    expires_at=st.integers(0, 2**64 - 1),
)


@given(INVITES)
def test_every_invite_survives_the_trip(invite: Invite) -> None:
    line = invite.encode()
    assert Invite.parse(line) == invite
    assert line.startswith("fedplat-invite-1:")
    assert len(line) < 300


@given(INVITES, st.data())
def test_any_altered_character_is_noticed(invite: Invite, data: st.DataObject) -> None:
    line = invite.encode()
    at = data.draw(st.integers(0, len(line) - 1))
    letter = data.draw(st.characters().filter(lambda letter: letter != line[at]))
    with pytest.raises(WireError):
        Invite.parse(line[:at] + letter + line[at + 1 :])


def test_every_single_alteration_of_one_line_is_noticed() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=+/: "
    for at, right in enumerate(LINE):
        for wrong in letters.replace(right, ""):
            with pytest.raises(WireError):
                Invite.parse(LINE[:at] + wrong + LINE[at + 1 :])


def test_swapped_lost_and_doubled_letters_are_noticed() -> None:
    for at in range(len(LINE) - 1):
        swapped = LINE[:at] + LINE[at + 1] + LINE[at] + LINE[at + 2 :]
        for wrong in {swapped, LINE[:at] + LINE[at + 1 :], LINE[:at] + LINE[at] + LINE[at:], LINE[:at]} - {LINE}:
            if wrong != LINE:
                with pytest.raises(WireError):
                    Invite.parse(wrong)


@given(st.text() | st.text().map("fedplat-invite-1:".__add__) | st.binary().map(lambda b: b.decode("latin1")))
def test_no_text_breaks_the_parser(text: str) -> None:
    with pytest.raises(WireError):
        Invite.parse(text)


@given(st.binary(max_size=150))
def test_no_bytes_under_a_right_checksum_break_the_parser(payload: bytes) -> None:
    line = "fedplat-invite-1:" + invites._to_text(payload + invites._checksum(payload))
    with suppress(WireError):
        assert Invite.parse(line).encode() == line


def test_each_kind_of_wrong_has_its_own_words() -> None:
    with pytest.raises(WireError, match="not an invite"):
        Invite.parse("hello")
    with pytest.raises(WireError, match="damaged in copying"):
        Invite.parse(LINE[:-1])
    with pytest.raises(WireError, match=r"another version \(2\)"):
        Invite.parse(LINE.replace("invite-1", "invite-2"))
    assert INVITE.expires_at == int(NOW_S) + 24 * 3600
    INVITE.check_time(INVITE.expires_at - 0.1)
    with pytest.raises(IdentityError, match="expired"):
        INVITE.check_time(INVITE.expires_at)


def test_a_line_that_a_mail_program_broke_is_healed() -> None:
    assert Invite.parse(f"\n  {LINE[:40]}\r\n{LINE[40:]} \n") == INVITE


def test_the_secret_is_not_shown() -> None:
    assert INVITE.secret.hex() not in repr(INVITE)
    assert repr(INVITE.secret) not in repr(INVITE)
    assert "secret" not in repr(INVITE)


def test_invites_differ_and_so_do_their_hashes() -> None:
    other = Invite.new("fed.example.org:8443", CA, "hospital-a", NOW_S)
    assert other.secret != INVITE.secret
    assert secret_hash(INVITE.secret) != secret_hash(other.secret)
    assert len(secret_hash(INVITE.secret)) == 64
    assert INVITE.secret.hex() not in secret_hash(INVITE.secret)


@pytest.mark.parametrize(
    ("server", "ca", "silo"),
    [
        ("fed.example.org", CA, "a"),
        ("fed:0", CA, "a"),
        ("fed:65536", CA, "a"),
        ("https://fed:1", CA, "a"),
        ("fed:1", CA.upper(), "a"),
        ("fed:1", CA[1:], "a"),
        ("fed:1", CA, "Hospital"),
    ],
)
def test_no_invite_is_made_from_nonsense(server: str, ca: str, silo: str) -> None:
    with pytest.raises(WireError):
        Invite.new(server, ca, silo, NOW_S)


@pytest.mark.parametrize("secret", [b"", b"0" * 15, b"0" * 17])
def test_a_secret_has_128_bits(secret: bytes) -> None:
    with pytest.raises(WireError, match="16 bytes"):
        Invite("fed:1", CA, "a", secret, 0)


def test_the_three_ways_to_pass_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_invite(LINE) == INVITE
    (tmp_path / "invite").write_text(LINE + "\n")
    assert read_invite(f"@{tmp_path / 'invite'}") == INVITE
    monkeypatch.setattr(sys, "stdin", io.StringIO(LINE + "\nmore\n"))
    assert read_invite("-") == INVITE


def test_a_file_that_is_no_invite(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        read_invite(f"@{tmp_path / 'nowhere'}")
    with pytest.raises(NotFoundError):
        read_invite(f"@{tmp_path}")
    (tmp_path / "binary").write_bytes(b"\xff\0" * 5000)
    with pytest.raises(WireError, match="not an invite"):
        read_invite(f"@{tmp_path / 'binary'}")
