"""What a run calls: at the join, before the update leaves, at the end; and what the server gets of it."""

from __future__ import annotations

import pytest

from fedplat.errors import IdentityError, WireError
from fedplat.identity import new_key, sign
from fedplat.identity.signing import Label
from fedplat.ledger import Deed, SignedStatement, Statement, from_wire, verify_statement
from fedplat.privacy import SampledGaussian, epsilon
from fedplat.reasons import Code, Reason
from fedplat_silo.data.errors import Refused
from fedplat_silo.data.exclusion import exclusion_file
from fedplat_silo.ledger import (
    BookBehind,
    BudgetExceeded,
    Keeper,
    LedgerError,
    RunUnprotected,
    begin_book,
    plan_run,
    verify_book,
)
from tests.unit.ledger.scene import SILO, Scene, steps, write_patients
from tests.unit.ledger.test_policy_keys import plain, spec


def told(scene: Scene, signed: SignedStatement | None) -> Statement:
    assert signed is not None
    return verify_statement(signed, scene.key.public_key(), SILO)


def test_a_run_from_join_to_end(scene: Scene) -> None:
    path = write_patients(scene.folder / "heart.csv", range(10))
    keeper, asked = Keeper(scene.book, scene.membership), spec()
    keeper.check("r-1", asked, None)
    exclusion_file(scene.home).write_text("pid\n3\n99\n")
    registration = keeper.enrol(asked, path, exclusion_file(scene.home))
    assert scene.book.look().datasets["heart"].patient_column == "pid"
    scene.budget(20)
    reserved = told(scene, keeper.reserve("r-1", asked, [steps(10)]))
    assert (reserved.deed, reserved.run, reserved.population) == (Deed.RESERVED, "r-1", registration.population)
    assert (reserved.seq, reserved.head) == scene.book.head()
    assert (reserved.epsilon, reserved.budget, reserved.delta, reserved.unit) == (0, 20, 1e-5, "patient")
    assert keeper.planned("r-1") == (steps(10),)
    spent = told(scene, keeper.spend("r-1", 1, "digest", [steps(2)]))
    assert (spent.round, spent.attempt, spent.epsilon) == (1, "digest", 2)
    assert [from_wire(e) for e in (spent.events, spent.spent, spent.reserved)] == [
        (steps(2),),
        (steps(2),),
        (steps(8),),
    ]
    again = told(scene, keeper.spend("r-1", 1, "digest", [steps(2)]))
    assert again == spent
    closed = told(scene, keeper.close("r-1"))
    assert (closed.deed, from_wire(closed.spent), closed.reserved) == (Deed.CLOSED, (steps(2),), ())
    assert keeper.close("r-9") is None
    with pytest.raises(LedgerError, match="nothing reserved"):
        keeper.planned("r-1")
    verify_book(scene.home)


def test_what_is_refused_before_any_data_is_touched(scene: Scene) -> None:
    keeper = Keeper(scene.book, scene.membership)
    keeper.check("r-1", plain(), None)
    scene.register()
    keeper.check("r-1", plain(), None)
    scene.budget(20)
    with pytest.raises(RunUnprotected, match="no differential privacy"):
        keeper.check("r-1", plain(), None)
    with pytest.raises(RunUnprotected, match="single records"):
        keeper.check("r-1", spec(unit="record"), None)
    keeper.check("r-1", spec(), None)
    scene.book.behind(99, "f" * 64)
    with pytest.raises(BookBehind):
        keeper.check("r-1", spec(), None)


def test_the_patients_are_those_that_the_silo_declared(scene: Scene) -> None:
    path = write_patients(scene.folder / "heart.csv", range(10))
    keeper = Keeper(scene.book, scene.membership)
    other = spec(task={"name": "tabular", "options": {"patient": "age"}})
    scene.register()
    with pytest.raises(RunUnprotected, match="'age'"):
        keeper.enrol(other, path, exclusion_file(scene.home))
    assert keeper.patient_column(plain()) == "pid"


def test_a_column_that_is_not_there(scene: Scene) -> None:
    path = write_patients(scene.folder / "heart.csv", range(10))
    keeper = Keeper(scene.book, scene.membership)
    asked = spec(task={"name": "tabular", "options": {"patient": "nobody"}})
    with pytest.raises(Refused, match="'nobody'") as caught:
        keeper.enrol(asked, path, exclusion_file(scene.home))
    assert caught.value.reason == Reason.of(Code.DATASET_UNREADABLE, dataset="heart")
    exclusion_file(scene.home).write_text("pid,age\n1,2\n")
    with pytest.raises(Refused, match="exclude"):
        keeper.enrol(spec(), path, exclusion_file(scene.home))


def test_the_plan_of_a_run(tmp_path: object) -> None:
    assert plan_run(plain(), 100) == ()
    explicit = spec(epsilon=None, noise_multiplier=1.5, expected_batch_size=10)
    assert plan_run(explicit, 95) == (SampledGaussian(sampling_rate=10 / 95, noise_multiplier=1.5, num_steps=100),)
    calibrated = plan_run(spec(epsilon=3.0, expected_batch_size=10), 95)
    assert 2.99 < epsilon(calibrated, delta=1e-5) <= 3.0
    assert plan_run(spec(epsilon=3.0, expected_batch_size=10), 95) == calibrated


NOISED = {"metrics": "noised", "metrics_noise_multiplier": 11.0, "epsilon": None, "noise_multiplier": 2.0}


def test_noised_metrics_are_planned_and_a_budget_has_to_hold_them_too(scene: Scene) -> None:
    """A hundred steps and eleven evaluations; the figure of these tests is 50 + 1."""
    plan = plan_run(spec(expected_batch_size=10, **NOISED), 95)
    assert [event.num_steps for event in plan] == [100, 11]
    keeper = Keeper(begin_book(scene.home), scene.membership)
    scene.register()
    scene.budget(50.5)
    with pytest.raises(BudgetExceeded) as caught:
        keeper.reserve("r-1", spec(**NOISED), plan)
    assert (caught.value.words["asked"], caught.value.words["budget"]) == ("51.000", "50.5")
    scene.budget(51)
    assert told(scene, keeper.reserve("r-1", spec(**NOISED), plan)).deed is Deed.RESERVED


def test_a_statement_is_the_silos_own(scene: Scene) -> None:
    scene.register()
    signed = scene.signed(scene.reserve("r-1", steps(1)))
    verify_statement(signed, scene.key.public_key(), SILO)
    with pytest.raises(IdentityError):
        verify_statement(signed, new_key().public_key(), SILO)
    with pytest.raises(IdentityError, match="hospital-a, not hospital-b"):
        verify_statement(signed, scene.key.public_key(), "hospital-b")
    altered = signed.model_copy(update={"statement": signed.statement.replace('"num_steps":1', '"num_steps":0')})
    assert altered != signed
    with pytest.raises(IdentityError):
        verify_statement(altered, scene.key.public_key(), SILO)
    for label, text in ((Label.JOIN, signed.statement), (Label.LEDGER, "{}")):
        other = SignedStatement(statement=text, signature=sign(scene.key, label, text).hex())
        with pytest.raises((IdentityError, WireError)):
            verify_statement(other, scene.key.public_key(), SILO)


def test_a_refusal_has_words_for_the_server(scene: Scene) -> None:
    keeper = Keeper(begin_book(scene.home), scene.membership)
    scene.register()
    scene.budget(5)
    with pytest.raises(BudgetExceeded) as caught:
        keeper.reserve("r-1", spec(), [steps(6)])
    assert caught.value.code == "budget_exceeded"
    assert caught.value.words == {
        "dataset": "heart",
        "total": "6.000",
        "budget": "5",
        "delta": "1e-05",
        "spent": "0.000",
        "committed": "0.000",
        "asked": "6.000",
    }
