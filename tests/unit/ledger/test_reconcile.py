"""A book that lost entries: what the server's copy says is charged, and never too little."""

from __future__ import annotations

import pytest

from fedplat.errors import IdentityError, WireError
from fedplat.identity import new_key
from fedplat.ledger import SignedStatement, Statement, countersign, sign_statement, verify_statement
from fedplat_silo.ledger import BookBehind, BudgetExceeded, Keeper, Known, verify_book
from fedplat_silo.ledger.receipts import Receipt
from tests.unit.ledger.scene import SILO, Scene, steps
from tests.unit.ledger.test_policy_keys import spec


class Server:
    """Keeps what it is told: the last head, and the last statement of each population."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.last: dict[str, SignedStatement] = {}

    def hears(self, receipt: Receipt) -> Receipt:
        signed = self.scene.signed(receipt)
        statement = verify_statement(signed, self.scene.key.public_key(), SILO)
        self.last[statement.population] = signed
        self.head = statement.seq, statement.head
        return receipt

    def countersigns(self, receipt: Receipt) -> None:
        seq, head = receipt.entry.seq, receipt.entry.hash
        keeper(self.scene).countersigned(seq, head, countersign(self.scene.server, SILO, seq, head))

    @property
    def known(self) -> Known:
        return Known(*self.head, tuple(self.last.values()))


def keeper(scene: Scene) -> Keeper:
    return Keeper(scene.book, scene.membership)


def charged(scene: Scene, dataset: str = "heart") -> int:
    state = scene.book.look()
    population = state.population(dataset)
    assert population is not None
    return state.spent(population).total()


@pytest.fixture
def server(scene: Scene) -> Server:
    """A run is reserved and countersigned, and has spent one round."""
    scene.register()
    scene.budget(20)
    server = Server(scene)
    server.countersigns(server.hears(scene.reserve("r-1", steps(10))))
    server.hears(scene.book.spend("r-1", 1, "a", [steps(1)]))
    return server


def test_nothing_is_missing(scene: Scene, server: Server) -> None:
    keeper(scene).check("r-2", spec(), server.known)
    assert keeper(scene).reconcile() is None
    keeper(scene).check_head(*server.head)


def test_lost_rounds_and_what_was_reserved_are_charged(scene: Scene, server: Server) -> None:
    old = scene.files()
    for number in (2, 3, 4):
        server.hears(scene.book.spend("r-1", number, "a", [steps(1)]))
    scene.restore(old)
    scene.reopen()
    with pytest.raises(BookBehind):
        keeper(scene).check_head(*server.head)
    with pytest.raises(BookBehind):
        keeper(scene).check("r-1", spec(), server.known)
    done = keeper(scene).reconcile()
    assert done is not None
    assert done.closed == ("r-1",)
    # 4 rounds were spent and 6 still reserved, all of it after the countersigned head; round 1 is in the book as well.
    assert charged(scene) == 11
    verify_book(scene.home)
    keeper(scene).check("r-1", spec(), server.known)  # the lost head is known, and settled
    keeper(scene).check_head(*server.head)
    server.hears(scene.reserve("r-1", steps(9)))
    keeper(scene).check("r-1", spec(), server.known)


def test_a_run_that_the_book_never_heard_of_is_charged(scene: Scene, server: Server) -> None:
    old = scene.files()
    server.hears(scene.reserve("r-2", steps(5)))
    scene.restore(old)
    scene.reopen()
    with pytest.raises(BookBehind):
        keeper(scene).check("r-3", spec(), server.known)
    keeper(scene).reconcile()
    assert charged(scene) >= 1 + 9 + 5


def test_whatever_is_asked_again_is_told_with_the_last_head(scene: Scene, server: Server) -> None:
    """An old head with new figures would let a restored copy of that head pass."""
    old = scene.files()
    scene.book.spend("r-1", 2, "a", [steps(1)])
    server.hears(scene.book.spend("r-1", 1, "a", [steps(1)]))
    assert server.head == scene.book.head()
    server.hears(scene.reserve("r-1", steps(10)))
    assert server.head == scene.book.head()
    scene.restore(old)
    scene.reopen()
    with pytest.raises(BookBehind):
        keeper(scene).check("r-1", spec(), server.known)
    keeper(scene).reconcile()
    assert scene.stated(scene.reserve("r-1", steps(9))).era == 1


def test_a_budget_that_was_lowered_holds_again(scene: Scene, server: Server) -> None:
    old = scene.files()
    scene.budget(12)
    server.hears(scene.book.spend("r-1", 2, "a", [steps(1)]))
    scene.restore(old)
    scene.reopen()
    with pytest.raises(BookBehind):
        keeper(scene).check("r-1", spec(), server.known)
    keeper(scene).reconcile()
    assert charged(scene) == 11
    scene.reserve("r-2", steps(1))
    with pytest.raises(BudgetExceeded, match="of 12"):
        scene.reserve("r-3", steps(1))
    scene.budget(20)
    scene.reserve("r-3", steps(8))


def test_lost_patients_are_part_of_whoever_is_registered_next(scene: Scene, server: Server) -> None:
    old = scene.files()
    scene.register("stroke", range(50, 60))
    server.hears(scene.reserve("r-2", steps(5), dataset="stroke"))
    scene.restore(old)
    scene.reopen()
    with pytest.raises(BookBehind):
        keeper(scene).check("r-3", spec(), server.known)
    keeper(scene).reconcile()
    assert scene.book.look().homeless()
    scene.register("renamed", range(50, 60))
    assert charged(scene, "renamed") == 5
    assert not scene.book.look().homeless()
    assert charged(scene) == 11


def test_a_book_that_went_on_after_the_restore_is_charged_for_both(scene: Scene, server: Server) -> None:
    old = scene.files()
    for number in (2, 3):
        server.hears(scene.book.spend("r-1", number, "a", [steps(1)]))
    scene.restore(old)
    scene.reopen()
    for number in (2, 3, 4):  # with other noise: truly another release
        scene.book.spend("r-1", number, "b", [steps(1)])
    with pytest.raises(BookBehind):
        keeper(scene).check("r-1", spec(), server.known)
    keeper(scene).reconcile()
    assert charged(scene) >= 1 + 2 + 3


def test_without_the_copy_it_has_to_be_said(scene: Scene, server: Server) -> None:
    receipt = server.hears(scene.book.spend("r-1", 2, "a", [steps(1)]))
    (scene.home.path / "ledger.head").write_text(f"{receipt.entry.seq + 3} {'e' * 64}\n")
    with pytest.raises(BookBehind, match="copy"):
        keeper(scene).reconcile()
    done = keeper(scene).reconcile(whole_reservations=True)
    assert done is not None
    assert charged(scene) == 10
    verify_book(scene.home)
    scene.reserve("r-2", steps(10))


def test_a_cut_end_is_made_whole_by_the_servers_copy(scene: Scene, server: Server) -> None:
    """Found by the silo's own note at first; the join then brings the copy."""
    old = scene.home.ledger.read_bytes()
    server.hears(scene.book.spend("r-1", 2, "a", [steps(1)]))
    scene.home.ledger.write_bytes(old)
    scene.reopen()
    with pytest.raises(BookBehind):
        scene.book.spend("r-1", 3, "a", [steps(1)])
    with pytest.raises(BookBehind):
        keeper(scene).reconcile()
    with pytest.raises(BookBehind):
        keeper(scene).check("r-1", spec(), server.known)
    keeper(scene).reconcile()
    assert charged(scene) >= 10
    keeper(scene).check("r-1", spec(), server.known)


def test_what_is_not_this_silos_own_statement_is_refused(scene: Scene, server: Server) -> None:
    known = server.known
    forged = Statement.model_validate_json(known.copies[0].statement).model_copy(update={"seq": 99, "head": "f" * 64})
    with pytest.raises(IdentityError):
        keeper(scene).check("r-1", spec(), Known(99, "f" * 64, (sign_statement(new_key(), forged),)))
    with pytest.raises(WireError, match="no statement"):
        keeper(scene).check("r-1", spec(), Known(99, "f" * 64, known.copies))
    other = forged.model_copy(update={"silo": "hospital-b"})
    with pytest.raises(IdentityError, match="hospital-b"):
        keeper(scene).check("r-1", spec(), Known(99, "f" * 64, (sign_statement(scene.key, other),)))
    scene.book.spend("r-1", 2, "a", [steps(1)])
