"""Whatever is done to the book behind its back is found, and said clearly."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from fedplat.errors import IdentityError, NotFoundError
from fedplat.home import SiloHome
from fedplat.identity import new_key
from fedplat.ledger import countersign
from fedplat_silo.ledger import BookBehind, BookDamaged, LedgerError, begin_book, find_book, verify_book
from fedplat_silo.ledger.keeper import Keeper
from fedplat_silo.ledger.storage import SCHEMA
from tests.unit.ledger.scene import Scene, steps


@pytest.fixture
def kept(scene: Scene) -> Scene:
    """A book of six entries: genesis, registered, budget, reserve, spend, spend."""
    scene.register()
    scene.budget(10)
    scene.reserve("r-1", steps(10))
    for number in (1, 2):
        scene.book.spend("r-1", number, "a", [steps(1)])
    return scene


def tamper(scene: Scene, *statements: str) -> None:
    """As somebody who knows SQLite would: without the rules, which are put back."""
    with closing(sqlite3.connect(scene.home.ledger)) as connection:
        rules = {name: sql for name, sql in SCHEMA.items() if "TRIGGER" in sql}
        for name in rules:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert connection.execute(statement).rowcount, "the tampering did nothing"
        for sql in rules.values():
            connection.execute(sql)
        connection.commit()


def test_a_whole_book(kept: Scene) -> None:
    verdict = verify_book(kept.home)
    assert (verdict.num_entries, verdict.countersigned) == (6, None)
    assert (verdict.num_entries, verdict.head) == kept.book.head()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET fields = '{}' WHERE seq = 2",
        "DELETE FROM entries WHERE seq = 6",
        "INSERT INTO entries SELECT 9, at, kind, fields, prev_hash, hash FROM entries WHERE seq = 6",
        "INSERT OR REPLACE INTO entries SELECT 6, at, kind, fields, prev_hash, hash FROM entries WHERE seq = 5",
        "UPDATE members SET present = 0",
        "DELETE FROM members",
        "INSERT INTO members VALUES (2, x'00', 1)",
        "INSERT OR REPLACE INTO members SELECT 6, id, 0 FROM members WHERE seq = 2",
    ],
)
def test_the_database_itself_only_grows(kept: Scene, statement: str) -> None:
    with closing(sqlite3.connect(kept.home.ledger)) as connection:
        connection.execute("INSERT INTO members VALUES (6, x'00', 1)")
        connection.execute("INSERT INTO members VALUES (6, x'01', 1)")
        statement = statement.replace("SELECT 6, id, 0 FROM members WHERE seq = 2", "VALUES (6, x'00', 0)")
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["UPDATE entries SET fields = replace(fields, '10.0', '99.0') WHERE seq = 3"], "entry 3 is not what was"),
        (["UPDATE entries SET at = '2020-01-01T00:00:00.000000+00:00' WHERE seq = 5"], "entry 5 is not what was"),
        (["UPDATE entries SET at = 5 WHERE seq = 5"], "entry 5 is not what was"),
        (["UPDATE entries SET fields = replace(fields, 'heart', 'other') WHERE seq = 2"], "entry 2 is not what was"),
        (["DELETE FROM entries WHERE seq = 5"], "entry 5 is missing"),
        (["DELETE FROM entries WHERE seq = 1"], "entry 1 is missing"),
        (
            [
                "UPDATE entries SET seq = 99 WHERE seq = 5",
                "UPDATE entries SET seq = 5 WHERE seq = 6",
                "UPDATE entries SET seq = 6 WHERE seq = 99",
            ],
            "entry 5 is not what was",
        ),
        (["DELETE FROM members WHERE id = (SELECT min(id) FROM members)"], "the patients of entry 2"),
        (["UPDATE members SET present = 0"], "the patients of entry 2"),
    ],
    ids=["edited", "dated back", "of another type", "renamed", "deleted", "beheaded", "reordered", "erased", "absent"],
)
def test_a_change_is_found_and_named(kept: Scene, statements: list[str], words: str) -> None:
    tamper(kept, *statements)
    with pytest.raises(BookDamaged, match=words) as caught:
        verify_book(kept.home)
    assert "reconcile" in caught.value.hint


@pytest.mark.parametrize("where", ["seq = 3", "seq = 5"])
def test_a_changed_book_spends_nothing(kept: Scene, where: str) -> None:
    tamper(kept, f"UPDATE entries SET fields = replace(fields, '1', '2') WHERE {where}")
    with pytest.raises(BookDamaged):
        begin_book(kept.home).spend("r-1", 3, "a", [steps(1)])


def test_an_entry_that_is_hashed_anew_does_not_fit_the_next(kept: Scene) -> None:
    from fedplat_silo.ledger.storage import entries_after

    with closing(sqlite3.connect(kept.home.ledger)) as connection:
        entry = next(entries_after(connection, 2))
    forged = entry.text.replace("10.0", "99.0")
    rehashed = type(entry)(entry.seq, entry.at, entry.kind, forged, entry.prev_hash, "").expected_hash
    tamper(kept, f"UPDATE entries SET fields = '{forged}', hash = '{rehashed}' WHERE seq = 3")
    with pytest.raises(BookDamaged, match="entry 4 does not follow entry 3"):
        verify_book(kept.home)


@pytest.mark.parametrize("name", [name for name in SCHEMA if "TRIGGER" in SCHEMA[name]])
def test_a_removed_rule_is_found(kept: Scene, name: str) -> None:
    with closing(sqlite3.connect(kept.home.ledger)) as connection:
        connection.execute(f"DROP TRIGGER {name}")
    with pytest.raises(BookDamaged, match=name):
        verify_book(kept.home)


def test_a_cut_end_is_found_and_nothing_is_spent(kept: Scene) -> None:
    tamper(kept, "DELETE FROM entries WHERE seq = 6")
    with pytest.raises(BookBehind, match=r"entry 6 \(\w+\), which this silo once noted, is not in it; it has 5"):
        verify_book(kept.home)
    for book in (kept.book, kept.reopen()):
        with pytest.raises(BookBehind):
            book.spend("r-1", 3, "a", [steps(1)])
        with pytest.raises(BookBehind):
            kept.reserve("r-2", steps(1))
    with pytest.raises(BookBehind):
        verify_book(kept.home)


def test_an_old_copy_of_the_book_is_found(kept: Scene) -> None:
    old = kept.home.ledger.read_bytes()
    kept.book.spend("r-1", 3, "a", [steps(1)])
    kept.home.ledger.write_bytes(old)
    with pytest.raises(BookBehind, match=r"entry 7 .* is not in it; it has 6"):
        verify_book(kept.home)
    with pytest.raises(BookBehind):
        kept.reopen().spend("r-1", 4, "a", [steps(1)])


def test_an_old_copy_that_went_on_is_found(kept: Scene) -> None:
    old = kept.home.ledger.read_bytes(), (kept.home.path / "ledger.head").read_bytes()
    kept.book.spend("r-1", 3, "a", [steps(1)])
    note = (kept.home.path / "ledger.head").read_bytes()
    kept.home.ledger.write_bytes(old[0])
    (kept.home.path / "ledger.head").write_bytes(old[1])
    kept.reopen().set_budget("heart", epsilon=20, delta=1e-5, unit="patient")
    (kept.home.path / "ledger.head").write_bytes(note)
    with pytest.raises(BookBehind, match=r"entry 7 .* is not in it; it has 7"):
        verify_book(kept.home)


def test_an_old_copy_of_everything_is_found_by_the_server(kept: Scene) -> None:
    old = kept.files()
    receipt = kept.book.spend("r-1", 3, "a", [steps(1)])
    kept.restore(old)
    book = kept.reopen()
    verify_book(kept.home)
    assert not book.behind(6, book.head()[1])
    assert book.behind(receipt.entry.seq, receipt.entry.hash)
    with pytest.raises(BookBehind, match=r"entry 7 \(\w+\), of which the server has"):
        book.spend("r-1", 4, "a", [steps(1)])
    with pytest.raises(BookBehind):
        verify_book(kept.home)
    assert kept.reopen().behind(6, "f" * 64)


def test_files_that_are_gone(kept: Scene) -> None:
    whole = kept.files()
    for name, error, words in (
        ("ledger.db", BookDamaged, "is gone"),
        ("ledger.head", BookBehind, "ledger.head"),
        ("ledger.key", BookDamaged, r"ledger\.key"),
    ):
        kept.restore({other: content for other, content in whole.items() if other != name})
        with pytest.raises(error, match=words):
            verify_book(kept.home)
        with pytest.raises(error, match=words):
            find_book(kept.home).spend("r-1", 3, "a", [steps(1)])
    kept.restore({})
    with pytest.raises(NotFoundError, match="no privacy ledger"):
        find_book(kept.home)


def test_files_that_are_damaged(kept: Scene) -> None:
    whole = kept.files()
    for name, content in (
        ("ledger.db", b""),
        ("ledger.db", b"not a database, but long enough to be one" * 100),
        ("ledger.db", whole["ledger.db"][:4096] + bytes(len(whole["ledger.db"]) - 4096)),
        ("ledger.head", b"x"),
        ("ledger.key", b"short"),
        ("ledger.key", b"k" * 32),
    ):
        kept.restore(whole | {name: content})
        with pytest.raises(BookDamaged):
            verify_book(kept.home)
        with pytest.raises(BookDamaged):
            find_book(kept.home).spend("r-1", 3, "a", [steps(1)])


def test_another_silos_book(kept: Scene) -> None:
    other = SiloHome(kept.folder, "hospital-b")
    other.create()
    for name, content in kept.files().items():
        (other.path / name).write_bytes(content)
        (other.path / name).chmod(0o600)
    with pytest.raises(BookDamaged, match="hospital-a"):
        verify_book(other)
    with pytest.raises(BookDamaged):
        find_book(other)


def test_a_newer_version(kept: Scene) -> None:
    with closing(sqlite3.connect(kept.home.ledger)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(LedgerError, match="newer version"):
        find_book(kept.home)


def test_the_servers_signature_is_kept_and_checked(kept: Scene) -> None:
    keeper = Keeper(kept.book, kept.membership)
    receipt = kept.reserve("r-2", steps(0))
    seq, head = receipt.entry.seq, receipt.entry.hash
    with pytest.raises(IdentityError):
        keeper.countersigned(seq, head, countersign(new_key(), "hospital-a", seq, head))
    with pytest.raises(IdentityError):
        keeper.countersigned(seq, head, countersign(kept.server, "hospital-b", seq, head))
    keeper.countersigned(seq, head, countersign(kept.server, "hospital-a", seq, head))
    assert verify_book(kept.home, kept.server.public_key()).countersigned == seq
    with pytest.raises(BookDamaged, match="signature is not valid"):
        verify_book(kept.home, new_key().public_key())
    stranger = countersign(kept.server, "hospital-a", 6, "f" * 64)
    with pytest.raises(BookBehind):
        keeper.countersigned(6, "f" * 64, stranger)
