from __future__ import annotations

import errno
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.app.message.message import make_message

from fedplat.home import SiloHome
from fedplat.params import Vector
from fedplat.reasons import Code, Reason
from fedplat.spec import RunSpec
from fedplat.wire.codec import Parcel, from_record, to_record
from fedplat.wire.http import Phase, Progress
from fedplat.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    JoinRequest,
    Request,
    TrainReply,
    TrainRequest,
    WeightsReply,
    WeightsRequest,
    WireMessage,
    layout_from_wire,
)
from fedplat_silo.accounts import Account
from fedplat_silo.client_app import make_client_app, run_of
from fedplat_silo.datasets import remember_datasets
from fedplat_silo.ledger import LedgerError
from fedplat_silo.policy import load_policy
from fedplat_silo.runs import Runs
from fedplat_silo.status import set_paused
from fedplat_silo.tasks.registry import identity
from fedplat_silo.trainer.errors import Cancelled, TrainingFailed
from fedplat_silo.workplace import Site
from tests.support.membership import enrol
from tests.unit.silo_process.fakes import LAYOUT, SUMS, Cast, no_road

Expected = TypeVar("Expected", bound=WireMessage)
WEIGHTS = np.arange(4, dtype=np.float32)
CANARY = "Jane Doe, born 1954"


def make_spec(**sections: Any) -> RunSpec:
    base: dict[str, Any] = {
        "name": "heart",
        "task": {"name": "tabular"},
        "data": {"name": "heart"},
        "rounds": {"count": 3},
        "training": {"epochs": 1},
    }
    return RunSpec.model_validate(base | sections)


class Silo:
    """A silo's runs and app, over a home on disk; making a second one is what a restart of the process does."""

    def __init__(self, home: SiloHome) -> None:
        self.home = home
        self.cast = Cast()
        self.said: list[Progress] = []
        self.runs = Runs(Site(home, self.cast.make, self.said.append, no_road))
        self.app = make_client_app(self.runs, home.name)

    def ask(self, request: Request, expected: type[Expected], vector: Vector | None = None) -> Parcel[Expected]:
        buffer = b"" if vector is None else vector.tobytes()
        return from_record(self.ask_raw(to_record(request, buffer), request.kind).content, expected)

    def ask_raw(self, record: RecordDict, kind: str) -> Message:
        message = make_message(Metadata(1, "m", 1, 2, "", "", time.time(), 60.0, kind), record)
        exchange: Any = {"waiting_s": 0.25, "communicating_s": 0.125}
        return self.app(message, Context(1, 2, exchange, RecordDict(), {}))

    def join(self, spec: RunSpec, run: str = "r-1", num_silos: int = 3) -> JoinReply:
        request = JoinRequest(run=run, spec_hash=spec.hash, spec=spec.canonical(), num_silos=num_silos)
        return self.ask(request, JoinReply).body

    def train(self, spec: RunSpec, number: int = 1, step: int = 1, **options: Any) -> Parcel[TrainReply]:
        weights = options.pop("weights", WEIGHTS)
        facts = {"run": "r-1", "spec_hash": spec.hash, "roster": ("hospital-a",), "evaluate": True}
        request = TrainRequest.model_validate({**facts, "round": number, "step": step, **options})
        return self.ask(request, TrainReply, weights)


@pytest.fixture
def silo(home: SiloHome, tmp_path: Path) -> Silo:
    enrol(home)
    (tmp_path / "heart.csv").touch()
    remember_datasets(home.datasets, [f"heart={tmp_path / 'heart.csv'}"])
    return Silo(home)


def edit_policy(silo: Silo, **rules: str) -> None:
    load_policy(silo.home.policy)
    silo.home.policy.write_text("".join(f"{key} = {value}\n" for key, value in rules.items()))


def failed(reply: Any) -> Code | None:
    return reply.failed.code if reply.failed else None


def test_a_silo_that_joins_says_what_it_trains_with(silo: Silo) -> None:
    reply = silo.join(make_spec())
    assert reply.failed is None
    assert layout_from_wire(reply.layout) == LAYOUT
    assert (reply.num_examples, reply.min_cohort) == (20, 1)
    assert (reply.task_version, reply.task_hash) == (identity("tabular").version, identity("tabular").sha256)
    assert reply.capabilities is not None
    assert reply.capabilities.torch == "2.9"
    assert silo.runs.names == ("r-1",)
    assert [p.phase for p in silo.said] == [Phase.CHECKING, Phase.WAITING]


def test_joining_again_is_the_same_answer_and_no_second_start(silo: Silo) -> None:
    first, again = (silo.join(make_spec()).model_copy(update={"ledger": None}) for _ in range(2))
    assert first == again
    assert silo.cast.did == ["start"]


def test_what_the_policy_forbids_is_refused_before_data_is_touched(silo: Silo) -> None:
    edit_policy(silo, most_rounds="2")
    silo.home.datasets.write_text("broken = ")
    reply = silo.join(make_spec())
    assert reply.failed == Reason.of(Code.POLICY, rule="most_rounds")
    assert silo.cast.did == []
    assert silo.runs.names == ()


def test_the_policy_is_read_again_at_every_join(silo: Silo) -> None:
    assert silo.join(make_spec(), num_silos=2).failed is None
    edit_policy(silo, smallest_cohort="3")
    assert failed(silo.join(make_spec(), num_silos=2)) is Code.POLICY
    assert silo.cast.did == ["start", "close"]


def test_a_broken_policy_refuses(silo: Silo) -> None:
    edit_policy(silo, no_such_rule="2")
    assert failed(silo.join(make_spec())) is Code.POLICY


def test_counts_and_metrics_leave_only_as_far_as_the_policy_lets_them(silo: Silo) -> None:
    spec = make_spec(strategy={"weighting": "uniform"})
    edit_policy(silo, share_counts="false", share_metrics='"none"', smallest_cohort="2")
    joined = silo.join(spec)
    assert (joined.failed, joined.num_examples, joined.min_cohort) == (None, None, 2)
    reply = silo.train(spec).body
    assert (reply.num_examples, reply.evaluated, reply.trained, reply.weight) == (None, None, None, 1.0)
    asked = EvaluateRequest(run="r-1", spec_hash=spec.hash, round=3)
    assert silo.ask(asked, EvaluateReply, WEIGHTS).body.evaluated is None


@pytest.mark.parametrize(("rule", "code"), [('"none"', None), ('"sums"', Code.LEDGER)])
def test_figures_that_do_not_leave_need_no_room_in_the_budget(
    silo: Silo, monkeypatch: pytest.MonkeyPatch, rule: str, code: Code | None
) -> None:
    def there_is_none(_account: Account) -> None:
        raise LedgerError("the budget is spent")

    monkeypatch.setattr(Account, "check_evaluation", there_is_none)
    edit_policy(silo, share_metrics=rule)
    spec = make_spec()
    silo.join(spec)
    asked = EvaluateRequest(run="r-1", spec_hash=spec.hash, round=3)
    reply = silo.ask(asked, EvaluateReply, WEIGHTS).body
    assert (reply.failed.code if reply.failed else None) is code


def test_a_declared_weight_is_what_this_silo_counts(silo: Silo) -> None:
    names = (silo.home.name, "other")
    strategy = {"weighting": "declared", "weights": {silo.home.name: 0.25, "other": 3}}
    spec = make_spec(silos={"names": names}, strategy=strategy)
    assert silo.join(spec).failed is None
    assert silo.train(spec).body.weight == 0.25


def test_a_run_that_names_others_is_not_joined(silo: Silo) -> None:
    assert failed(silo.join(make_spec(silos={"names": ["some", "others"]}))) is Code.NOT_NAMED


@pytest.mark.parametrize(("rule", "shown"), [('"sums"', False), ('"per-silo"', True)])
def test_whether_the_server_may_show_this_silos_figures(silo: Silo, rule: str, shown: bool) -> None:
    edit_policy(silo, share_metrics=rule)
    spec = make_spec()
    silo.join(spec)
    reply = silo.train(spec).body
    assert (reply.evaluated, reply.share_metrics) == (SUMS, shown)


def test_a_known_run_with_another_spec_is_refused_for_ever(silo: Silo) -> None:
    spec, other = make_spec(), make_spec(seed=1)
    silo.join(spec)
    assert failed(silo.join(other)) is Code.SPEC_MISMATCH
    assert failed(Silo(silo.home).join(other)) is Code.SPEC_MISMATCH, "after a restart"
    silo.runs.cancel("r-1")
    silo.runs.end("r-1")
    assert failed(Silo(silo.home).join(other)) is Code.SPEC_MISMATCH, "and after its end"
    assert Silo(silo.home).join(spec).failed is None


def test_a_spec_that_is_not_what_its_hash_says_is_refused(silo: Silo) -> None:
    spec = make_spec()
    for text in (make_spec(seed=1).canonical(), spec.canonical() + " ", "{}"):
        request = JoinRequest(run="r-1", spec_hash=spec.hash, spec=text, num_silos=3)
        assert failed(silo.ask(request, JoinReply).body) is Code.MESSAGE_INVALID


def test_one_run_at_a_time(silo: Silo) -> None:
    silo.join(make_spec())
    assert failed(silo.join(make_spec(), "r-2")) is Code.BUSY
    assert failed(Silo(silo.home).join(make_spec(), "r-2")) is Code.BUSY, "a restart does not forget the first"
    silo.runs.cancel("r-1")
    silo.runs.end("r-1")
    assert silo.join(make_spec(), "r-2").failed is None


def test_a_failed_join_leaves_room_for_another_run(silo: Silo) -> None:
    silo.cast.failure = TrainingFailed(Reason.of(Code.COLUMN_MISSING, column="age"))
    assert silo.join(make_spec()).failed == Reason.of(Code.COLUMN_MISSING, column="age")
    silo.cast.failure = None
    assert silo.join(make_spec(), "r-2").failed is None


def test_unknown_dataset_and_task(silo: Silo) -> None:
    edit_policy(silo, allowed_tasks='["*"]')
    unknown = silo.join(make_spec(data={"name": "chest"}), "r-1").failed
    assert unknown == Reason.of(Code.DATASET_UNKNOWN, dataset="chest")
    assert silo.join(make_spec(task={"name": "x"}), "r-2").failed == Reason.of(Code.TASK_MISSING, task="x")
    assert silo.join(make_spec(data={"name": "none"}), "r-3").failed is None, "for a task that needs no data"


def test_a_paused_silo_takes_part_in_nothing(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    set_paused(silo.home, True)
    assert failed(silo.join(spec)) is Code.PAUSED
    assert failed(silo.train(spec).body) is Code.PAUSED
    set_paused(silo.home, False)
    assert silo.train(spec).body.failed is None


def test_the_initial_weights_travel_in_the_buffer(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    reply = silo.ask(WeightsRequest(run="r-1", spec_hash=spec.hash), WeightsReply)
    assert reply.vector(4).tolist() == [0, 0, 0, 0]


def test_a_round_trains_and_says_how(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    reply = silo.train(spec, proximal_mu=0.1)
    assert reply.vector(4).tolist() == [1, 1, 1, 1]
    body = reply.body
    assert (body.weight, body.num_examples, body.evaluated, body.trained) == (20, 20, SUMS, SUMS)
    timings = body.timings
    assert (timings.training_s, timings.restarts, timings.waiting_s, timings.communicating_s) == (1.5, 1, 0.25, 0.125)


def test_asked_again_it_sends_the_same_update_and_trains_no_more(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    first = silo.train(spec)
    silo.cast.update = 2.0
    again = silo.train(spec, step=2)
    assert again.buffer == first.buffer
    assert again.body == first.body.model_copy(update={"step": 2, "ledger": again.body.ledger})
    assert silo.cast.did == ["start", "train 1"]


def test_a_restarted_process_answers_from_disk_without_workers(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    first = silo.train(spec)
    restarted = Silo(silo.home)
    assert restarted.train(spec).buffer == first.buffer
    assert restarted.cast.did == []


def test_a_restarted_process_prepares_again_by_itself(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    restarted = Silo(silo.home)
    assert restarted.runs.names == ("r-1",)
    assert restarted.train(spec, 2).body.failed is None
    assert restarted.cast.did == ["start", "train 2"]


def test_other_weights_for_the_same_round_train_anew(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    silo.train(spec)
    silo.train(spec, weights=WEIGHTS + 1)
    assert silo.cast.did == ["start", "train 1", "train 1"]


def test_a_later_round_forgets_the_earlier_one(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    silo.train(spec)
    silo.train(spec, 2)
    assert sorted(p.name for p in (silo.home.spool / "r-1").iterdir()) == ["2.buffer", "2.update"]


def test_weights_of_another_size_are_a_bad_message(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    assert failed(silo.train(spec, weights=np.zeros(3, dtype=np.float32)).body) is Code.MESSAGE_INVALID


def test_a_run_that_was_never_joined_and_one_of_another_spec_get_nothing(silo: Silo) -> None:
    assert failed(silo.train(make_spec()).body) is Code.NOT_JOINED
    silo.join(make_spec())
    assert failed(silo.train(make_spec(seed=2)).body) is Code.SPEC_MISMATCH


def test_a_broken_list_of_datasets_is_a_reason_and_the_log_names_the_file(
    silo: Silo, caplog: pytest.LogCaptureFixture
) -> None:
    silo.home.datasets.write_text("heart = ")
    reply = silo.join(make_spec())
    assert reply.failed == Reason.of(Code.DATASET_UNREADABLE, dataset="heart")
    assert f"{silo.home.datasets} cannot be read" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_a_full_disk_is_named(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    silo.cast.failure = OSError(errno.ENOSPC, "No space left on device", CANARY)
    assert silo.train(spec).body.failed == Reason.of(Code.DISK_FULL)


def test_what_nobody_foresaw_leaves_as_a_code_alone(silo: Silo, caplog: pytest.LogCaptureFixture) -> None:
    spec = make_spec()
    silo.join(spec)
    silo.cast.failure = RuntimeError(CANARY)
    facts = {"run": "r-1", "spec_hash": spec.hash, "roster": [], "evaluate": True, "round": 1, "step": 1}
    with caplog.at_level("DEBUG"):
        message = silo.ask_raw(to_record(TrainRequest.model_validate(facts), WEIGHTS.tobytes()), "train")
    reply = from_record(message.content, TrainReply).body
    assert reply.failed == Reason.of(Code.INTERNAL, phase="training")
    assert CANARY not in repr(message.content)
    assert CANARY in caplog.text, "the log has the detail"
    shown = [r.getMessage() for r in caplog.records if r.levelname != "DEBUG"]
    assert not any(CANARY in line for line in shown), "the console does not"


def test_a_run_that_ends_cancels_what_it_does(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    silo.cast.busy = threading.Event()
    outcome: list[BaseException] = []

    def train() -> None:
        try:
            silo.train(spec)
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    assert silo.cast.busy.wait(5)
    silo.runs.cancel("r-1")
    thread.join(5)
    silo.runs.end("r-1")
    assert len(outcome) == 1
    assert silo.runs.names == ()


def test_a_run_that_is_over_leaves_its_spec_and_the_local_parameters(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    silo.train(spec)
    folder = silo.home.run("r-1")
    (folder / "local-00000001.safetensors").write_bytes(b"mine")
    (folder / "scratch").mkdir()
    silo.runs.cancel("r-1")
    silo.runs.end("r-1")
    assert sorted(p.name for p in folder.iterdir()) == ["ended", "local-00000001.safetensors", "past.json"]
    assert (folder / "ended").read_text() == spec.hash
    assert not (silo.home.spool / "r-1").exists()
    assert silo.cast.did[-1] == "close"


def test_stopping_leaves_everything_on_disk_for_the_next_process(silo: Silo) -> None:
    spec = make_spec()
    silo.join(spec)
    silo.train(spec)
    silo.runs.stop()
    assert silo.cast.did[-1] == "close"
    assert Silo(silo.home).runs.names == ("r-1",)
    assert (silo.home.spool / "r-1" / "1.update").exists()


def test_a_message_that_cannot_be_read_is_answered_by_an_error(silo: Silo) -> None:
    garbage = RecordDict({"fedplat": ConfigRecord({"body": json.dumps({"run": "../../x"}), "buffer": b""})})
    assert silo.ask_raw(garbage, "train").has_error()
    assert silo.ask_raw(RecordDict(), "query.join").has_error()
    assert silo.ask_raw(garbage, "query.agree").has_error()
    with pytest.raises(ValueError, match="gossip"):
        silo.ask_raw(garbage, "query.gossip")


def test_the_run_of_a_message_is_seen_before_it_is_understood() -> None:
    request = WeightsRequest(run="r-1", spec_hash=hashlib.sha256(b"").hexdigest())
    assert run_of(to_record(request)) == "r-1"
    for body in ("", "[]", "{}", '{"run": 1}', "[" * 100_000):
        assert run_of(RecordDict({"fedplat": ConfigRecord({"body": body, "buffer": b""})})) is None
    assert run_of(RecordDict()) is None
