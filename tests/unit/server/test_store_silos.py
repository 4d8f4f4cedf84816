"""Invites and silos, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.exc import StatementError

from fedplat.errors import ConflictError, IdentityError, NotFoundError, WireError
from fedplat_server.store import InviteKind, Silo, SiloState, Store

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(hours=24)
SECRET, OTHER_SECRET = "a" * 64, "b" * 64


def invite(store: Store, name: str = "hospital-a", secret: str = SECRET, kind: InviteKind = InviteKind.ENROL):
    return store.silos.invite(name=name, secret_hash=secret, expires_at=LATER, kind=kind)


def redeem(store: Store, name: str = "hospital-a", secret: str = SECRET, key: str = "1", now: datetime = NOW) -> Silo:
    return store.silos.redeem(
        name=name,
        secret_hash=secret,
        now=now,
        public_key_pem=f"pem {key}",
        fingerprint=key * 64,
        node_id=2**64 - int(key),
    )


def test_an_invite_enrols_a_silo(store: Store) -> None:
    invite(store)
    silo = redeem(store)
    assert silo == Silo(
        name="hospital-a",
        public_key_pem="pem 1",
        fingerprint="1" * 64,
        node_id=2**64 - 1,
        state=SiloState.ENROLLED,
        enrolled_at=NOW,
        revoked_at=None,
        last_seen_at=None,
        rotated_at=None,
    )
    assert store.silos.get("hospital-a") == store.silos.by_fingerprint("1" * 64) == silo
    assert store.silos.list() == [silo]
    assert [(event.kind, event.actor) for event in store.events.list()] == [
        ("silo.invited", "server"),
        ("silo.enrolled", "hospital-a"),
    ]


def test_who_lost_the_answer_asks_again(store: Store) -> None:
    invite(store)
    assert redeem(store) == redeem(store, now=LATER + timedelta(days=9))
    assert len(store.events.list()) == 2


def test_each_refused_invite_says_why(store: Store) -> None:
    def refused(words: str, **changes) -> None:
        with pytest.raises(IdentityError, match=words) as error:
            redeem(store, **changes)
        assert error.value.hint

    refused("unknown")
    invite(store)
    refused("for another silo, hospital-a, not for hospital-b", name="hospital-b")
    refused("expired at 2026-03-02 12:00:00", now=LATER)
    invite(store, secret=OTHER_SECRET)
    refused("cancelled at ")
    redeem(store, secret=OTHER_SECRET)
    refused("already used at 2026-03-01 12:00:00", secret=OTHER_SECRET, key="2")


def test_a_key_belongs_to_one_silo(store: Store) -> None:
    invite(store)
    redeem(store)
    invite(store, "hospital-b", OTHER_SECRET)
    with pytest.raises(IdentityError, match="hospital-b offers the key that silo hospital-a has"):
        redeem(store, "hospital-b", OTHER_SECRET)
    assert redeem(store, "hospital-b", OTHER_SECRET, key="2").name == "hospital-b"


def test_rotation_keeps_the_node_and_replaces_the_key(store: Store) -> None:
    invite(store)
    old = redeem(store)
    invite(store, secret=OTHER_SECRET, kind=InviteKind.ROTATE)
    new = redeem(store, secret=OTHER_SECRET, key="2", now=NOW + timedelta(hours=1))
    assert (new.node_id, new.enrolled_at) == (old.node_id, old.enrolled_at)
    assert (new.fingerprint, new.rotated_at) == ("2" * 64, NOW + timedelta(hours=1))
    assert store.silos.by_fingerprint("1" * 64) is None


def test_what_cannot_be_invited(store: Store) -> None:
    with pytest.raises(ConflictError, match="not enrolled"):
        invite(store, kind=InviteKind.ROTATE)
    with pytest.raises(WireError, match="cannot be the name"):
        invite(store, "Hospital A")
    invite(store)
    redeem(store)
    with pytest.raises(ConflictError, match="enrolled already"):
        invite(store, secret=OTHER_SECRET)
    with pytest.raises(NotFoundError, match="no silo hospital-z"):
        store.silos.get("hospital-z")


def test_revoking_closes_invites_and_can_be_followed_by_a_new_start(store: Store) -> None:
    invite(store)
    redeem(store)
    invite(store, secret=OTHER_SECRET, kind=InviteKind.ROTATE)
    gone = store.silos.revoke("hospital-a")
    assert gone.state is SiloState.REVOKED
    assert gone.revoked_at is not None
    assert store.silos.revoke("hospital-a") == gone
    for secret in (SECRET, OTHER_SECRET):
        with pytest.raises(IdentityError):
            redeem(store, secret=secret)
    assert store.silos.get("hospital-a").state is SiloState.REVOKED
    invite(store, secret="c" * 64)
    assert redeem(store, secret="c" * 64, key="3").state is SiloState.ENROLLED
    with pytest.raises(NotFoundError):
        store.silos.revoke("hospital-z")


def test_one_of_many_that_use_an_invite_at_once_wins(store: Store) -> None:
    invite(store)

    def attempt(key: int) -> str:
        try:
            return redeem(store, key=str(key)).fingerprint
        except IdentityError as error:
            return error.message

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(1, 9)))
    assert answers.count(store.silos.get("hospital-a").fingerprint) == 1
    assert sum("already used" in answer for answer in answers) == 7


def test_last_seen_moves_forward_only_and_reads_back_in_utc(store: Store, enrol) -> None:
    enrol("hospital-a", "hospital-b", "hospital-c")
    in_tokyo = NOW.astimezone(timezone(timedelta(hours=9)))
    store.silos.seen({"hospital-a": in_tokyo, "hospital-b": NOW})
    store.silos.seen({"hospital-a": NOW - timedelta(seconds=1), "hospital-b": LATER})
    store.silos.seen({})
    seen = [silo.last_seen_at for silo in store.silos.list()]
    assert seen == [NOW, LATER, None]
    assert [time.tzinfo for time in seen if time] == [UTC, UTC]


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(StatementError, match="without a time zone"):
        store.silos.invite(name="hospital-a", secret_hash=SECRET, expires_at=LATER.replace(tzinfo=None))
    assert store.silos.invites() == []
