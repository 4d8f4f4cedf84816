"""A silo whose process, or whose machine, dies at any write of a run with secure aggregation: the sum that is opened in
the end is the right one, what it has shown once it shows again, and no secret outlives the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedplat import bufferfiles, durable
from fedplat.canonical import sha256_hex
from fedplat.home import ServerHome, SiloHome
from fedplat.identity import ca_fingerprint, ensure_authority, fingerprint, new_key, public_pem
from fedplat.secagg import silo as peer_silo
from fedplat.secagg.figures import Figures, FiguresFormat, part_of
from fedplat.secagg.messages import Roster, TrainPart
from fedplat.secagg.prg import apply
from fedplat.secagg.roster import RunBinding, make_roster, roster_hash
from fedplat.secagg.rules import SiloRules
from fedplat.secagg.server import ServerStep
from fedplat.secagg.state import SiloState, open_run
from fedplat.spec import RunSpec, parse_spec
from fedplat.wire.messages import (
    AgreeReply,
    AgreeRequest,
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    KeysReply,
    KeysRequest,
    Masking,
    StepRequest,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
    layout_from_wire,
)
from fedplat.wire.terms import Shape, step_terms
from fedplat_silo.datasets import remember_datasets
from fedplat_silo.masker import STATE, _live
from fedplat_silo.membership import Membership, Place, save_membership
from tests.faults.test_silo_recovery import SPEC, NotDone, RealSilo, data  # noqa: F401 (the fixture)
from tests.support.crashes import Crash, CrashingFilesystem

NAMES = ("hospital-a", "hospital-b")
SECURE = "[secure_aggregation]\nenabled = true\nmin_cohort = 2\nmax_examples = 1000\n"


@dataclass
class Peer:
    """The other silo, in memory."""

    key: Any
    state: SiloState
    parts: dict[int, tuple[TrainPart, np.ndarray]] = field(default_factory=dict)


@dataclass
class Script:
    """What a server asks the silo under test in a run of two rounds, and the sums that it opens."""

    spec: RunSpec
    home: SiloHome
    binding: RunBinding
    known: dict[str, str]
    peer: Peer
    weights: np.ndarray = field(default_factory=lambda: np.linspace(-0.5, 0.5, 8, dtype=np.float32))
    shape: Shape | None = None
    roster: Roster | None = None
    shown: dict[int, tuple[TrainPart, bytes]] = field(default_factory=dict)

    def life(self) -> list[Callable[[RealSilo], Any]]:
        def train(number: int, step: int) -> Callable[[RealSilo], Any]:
            return lambda silo: self._step(silo, self._train(number, step), TrainReply)

        return [
            self._join,
            self._keys,
            train(1, 1),
            train(1, 1),  # asked again
            train(1, 2),  # the round is begun again
            lambda silo: self._open(silo, self._train(1, 2)),
            train(2, 3),
            lambda silo: self._open(silo, self._train(2, 3)),
            lambda silo: self._step(silo, self._evaluate(), EvaluateReply),
            lambda silo: self._open(silo, self._evaluate()),
            self._end,
        ]

    def run(self, disk: CrashingFilesystem, patch: pytest.MonkeyPatch) -> list[Any]:
        """All that was opened. When the silo dies a new process is started, and asked again."""
        for module in (durable, bufferfiles):
            patch.setattr(module, "filesystem", disk)
        silo, opened = None, []
        for step in self.life():
            try:
                silo = silo or self._start()
                opened.append(step(silo))
            except (Crash, NotDone):
                patch.undo()
                silo = self._start()
                opened.append(step(silo))
        patch.undo()
        return [one for one in opened if one is not None]

    def _start(self) -> RealSilo:
        _live.clear()  # what a process had in memory
        return RealSilo(self.home)

    def _join(self, silo: RealSilo) -> None:
        reply: JoinReply = silo.join(self.spec)
        if reply.failed:
            raise NotDone
        assert reply.empty_sums is not None
        layout = layout_from_wire(reply.layout)
        self.shape = Shape(layout.fingerprint, layout.size, reply.empty_sums)

    def _keys(self, silo: RealSilo) -> None:
        asked = KeysRequest(run="r-1", spec_hash=self.spec.hash, epoch=1)
        mine = _heard(silo.ask(asked, KeysReply).body).key
        self.peer.state, other = peer_silo.offer_key(self.peer.state, self.peer.key, 1)
        self.roster = make_roster(self.binding, 1, 1, [mine, other], self.known)

    def _train(self, number: int, step: int) -> TrainRequest:
        return TrainRequest(**self._about(step), round=number, evaluate=True)

    def _evaluate(self) -> EvaluateRequest:
        return EvaluateRequest(**self._about(4), round=2)

    def _about(self, step: int) -> dict[str, Any]:
        assert self.roster is not None
        masking = Masking(roster=self.roster, max_weight=1000)
        return {"run": "r-1", "spec_hash": self.spec.hash, "step": step, "roster": NAMES, "masking": masking}

    def _weights(self, asked: Any) -> np.ndarray:
        return self.weights / np.float32(asked.round + isinstance(asked, EvaluateRequest))

    def _server(self, asked: StepRequest) -> ServerStep:
        assert self.shape is not None
        assert self.roster is not None
        terms = step_terms(asked, self.spec, sha256_hex(self._weights(asked).tobytes()), self.shape)
        return ServerStep(self.roster, terms.context(roster_hash(self.binding, self.roster)), terms, 2)

    def _step(self, silo: RealSilo, asked: Any, kind: Any) -> None:
        parcel = silo.ask(asked, kind, self._weights(asked))
        body = _heard(parcel.body)
        shown = body.masked, parcel.buffer
        assert self.shown.setdefault(asked.step, shown) == shown, "the same bytes to the same question"
        told = (body.weight, body.num_examples, body.evaluated, body.trained) if kind is TrainReply else ()
        assert told == (1.0, None, None, None)[: len(told)]
        self._peer_step(asked)

    def _peer_step(self, asked: Any) -> None:
        if asked.step in self.peer.parts:
            return
        assert self.roster is not None
        step, figures = self._server(asked), FiguresFormat(self.shape.empty_sums)  # type: ignore[union-attr]
        limit = step.terms.vector.limit
        words = np.zeros(step.terms.vector.length, np.uint32)
        words[-figures.length :] = figures.encode(self._peers(limit), limit, bytes(32))
        rules = SiloRules(known=self.known, min_cohort=2)
        self.peer.state = peer_silo.accept_roster(self.peer.state, rules, self.roster)
        self.peer.state, part = peer_silo.begin_step(self.peer.state, rules, step.terms, words)
        peer_silo.mask(self.peer.state, asked.step, words)
        self.peer.parts[asked.step] = part, words

    def _peers(self, limit: int) -> Figures:
        """Nothing but sums over no records, so that those of the silo under test are read."""
        empty = self.shape.empty_sums  # type: ignore[union-attr]
        return Figures(weight=part_of(limit, 1.0, 1000.0), evaluated=empty, trained=empty)

    def _open(self, silo: RealSilo, asked: Any) -> tuple[list[int], Any]:
        """The sum's update, in whole numbers, and its figures."""
        step = self._server(asked)
        mine, noise = self.shown[asked.step]
        other, words = self.peer.parts[asked.step]
        parts = dict(zip(NAMES, (mine, other), strict=True))
        assert step.left_out(parts) == ()
        cohort = step.fix_cohort(parts)
        rules = SiloRules(known=self.known, min_cohort=2)
        agree = AgreeRequest(run="r-1", spec_hash=self.spec.hash, question=step.agree_question(NAMES[0], cohort, parts))
        signed = {NAMES[0]: _heard(silo.ask(agree, AgreeReply).body).answer}
        question = step.agree_question(NAMES[1], cohort, parts)
        self.peer.state, signed[NAMES[1]] = peer_silo.agree(self.peer.state, rules, self.peer.key, question)
        unmask = UnmaskRequest(run="r-1", spec_hash=self.spec.hash, question=step.unmask_question(cohort, signed))
        answers = {NAMES[0]: _heard(silo.ask(unmask, UnmaskReply).body).answer}
        answers[NAMES[1]] = peer_silo.unmask(self.peer.state, unmask.question)
        total = np.frombuffer(noise, np.uint32) + words
        apply(total, step.streams(cohort, parts, answers))
        figures = FiguresFormat(self.shape.empty_sums)  # type: ignore[union-attr]
        return total[: -figures.length].tolist(), figures.decode(total[-figures.length :], 2)

    def _end(self, silo: RealSilo) -> None:
        for run in silo.runs.names:
            silo.runs.cancel(run)
            silo.runs.end(run)


def _heard(body: Any) -> Any:
    if body.failed:
        raise NotDone(str(body.failed))
    return body


@pytest.fixture
def script(tmp_path: Path, data: Path) -> Script:  # noqa: F811
    """Before the first process of the silo."""
    server = ServerHome(tmp_path / "server")
    server.create()
    pem = ensure_authority(server).certificate_pem
    home = SiloHome(tmp_path / "new", "hospital-a")
    home.create()
    key, other = new_key(), new_key()
    place = Place(
        address="localhost:1",
        node_id=1,
        server_key=public_pem(new_key()),
        ca_fingerprint=ca_fingerprint(pem),
        key_fingerprint=fingerprint(key.public_key()),
        invite="0" * 64,
    )
    save_membership(home, Membership("hospital-a", place, pem, key))
    (home.identity / "rounding.key").write_bytes(bytes(32))
    remember_datasets(home.datasets, [f"clinic={data}"])
    home.policy.write_text("min_cohort = 2\n")
    spec = parse_spec(SPEC.format(rounds=2, steps=3, every=2) + SECURE)
    binding = RunBinding(ca_fingerprint=place.ca_fingerprint, run="r-1", spec_hash=spec.hash)
    known = {"hospital-a": place.key_fingerprint, "hospital-b": fingerprint(other.public_key())}
    return Script(spec, home, binding, known, Peer(other, open_run(None, binding, "hospital-b")))


def copied(script: Script, name: str) -> Script:
    """The same beginning, in another folder."""
    root = script.home.root.with_name(name)
    shutil.copytree(script.home.root, root)
    peer = Peer(script.peer.key, open_run(None, script.binding, "hospital-b"))
    return Script(script.spec, SiloHome(root, "hospital-a"), script.binding, script.known, peer)


@pytest.mark.parametrize("power_loss", [pytest.param(False, marks=pytest.mark.slow), True], ids=["kill", "power loss"])
def test_death_at_every_write_of_a_run(script: Script, monkeypatch: pytest.MonkeyPatch, power_loss: bool) -> None:
    disk = CrashingFilesystem(10_000, power_loss=power_loss)
    calm = copied(script, "calm")
    expected = calm.run(disk, monkeypatch)
    assert [found.evaluated.num_examples > 0 for _, found in expected] == [True, True, True]
    assert [len(update) for update, _ in expected] == [8, 8, 0]
    assert len(disk.steps) > 60
    for at, step in enumerate(disk.steps):
        tried = copied(script, str(at))
        assert tried.run(CrashingFilesystem(at, power_loss=power_loss), monkeypatch) == expected, (at, step)
        kept = json.loads((tried.home.run("r-1") / STATE).read_text())
        assert kept == json.loads((calm.home.run("r-1") / STATE).read_text()), (at, step)
        assert not {"record", "chains", "private_key", "roster"} & kept.keys(), (at, step)
        assert not list(tried.home.spool.iterdir()), (at, step)
