"""Whole rounds with secure aggregation beside plain ones: the same federation, the same silos, the same vectors, one
run after the other, again and again; and the server's part where silos vanish."""

from __future__ import annotations

import statistics
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fedplat.identity.keys import fingerprint, new_key
from fedplat.secagg import prg, silo
from fedplat.secagg.fixedpoint import Segment, VectorFormat, quantise
from fedplat.secagg.messages import Roster, TrainPart
from fedplat.secagg.roster import RunBinding, roster_hash
from fedplat.secagg.rules import SiloRules
from fedplat.secagg.server import ServerStep
from fedplat.secagg.state import SiloState, open_run
from fedplat.secagg.terms import StepTerms
from tests.support.federation import Federation, add_constant, federation

SILOS = ("silo-a", "silo-b")
POLICY = 'allowed_tasks = ["*"]\nmin_cohort = 2\n'
SECURE = "\n[secure_aggregation]\nenabled = true\nmin_cohort = 2\n"


def overhead(floats: int, rounds: int, repeats: int) -> dict[str, float]:
    """Seconds a round, plain and secure, and how many times as long: medians over runs in turn. Two silos."""
    seconds: dict[str, list[float]] = {"plain": [], "secure": []}
    with federation() as fed:
        for name in SILOS:
            fed.join(name, policy=POLICY)
        for _ in range(repeats):
            for kind, more in (("plain", ""), ("secure", SECURE)):
                seconds[kind].append(_round_s(fed, floats, rounds, more))
    plain, secure = (statistics.median(seconds[kind]) for kind in ("plain", "secure"))
    return {"plain_s": plain, "secure_s": secure, "overhead": secure / plain}


def _round_s(fed: Federation, floats: int, rounds: int, more: str) -> float:
    """By the rounds' rows; the first is left out, for connections are made in it."""
    text = add_constant(size=floats, rounds=rounds + 1, silos=SILOS, minimum=2) + more
    view = fed.wait_for(fed.submit(text + "\n[checkpoint]\nkeep_last = 1\n"), timeout_s=1200)
    done = [r for r in view["rounds"] if r["number"] > 1]
    begun, ended = (datetime.fromisoformat(t) for t in (done[0]["started_at"], done[-1]["finished_at"]))
    return (ended - begun).total_seconds() / len(done)


def dropouts(num_silos: int, num_dropped: int, floats: int) -> dict[str, Any]:
    """One step in one process, on one core: what a silo spends, what the server spends to open the sum of those that
    stayed, and the bytes beside the update."""
    binding = RunBinding(ca_fingerprint="ca" * 32, run="bench", spec_hash="5e" * 32)
    names = [f"silo-{i:02}" for i in range(num_silos)]
    identities = {name: new_key() for name in names}
    known = {name: fingerprint(key.public_key()) for name, key in identities.items()}
    states: dict[str, SiloState] = {}
    offers = []
    for name in names:
        states[name], key = silo.offer_key(open_run(None, binding, name), identities[name], 1)
        offers.append(key)
    roster, rules = Roster(epoch=1, first_step=1, keys=tuple(offers)), SiloRules(known=known, min_cohort=2)
    vector = VectorFormat(num_silos, (Segment(floats, 8.0),))
    terms = StepTerms(1, tuple(names), False, "aa" * 32, "bb" * 32, "cc" * 32, vector)
    step = ServerStep(roster, terms.context(roster_hash(binding, roster)), terms, 2)
    stayed = names[num_dropped:]
    total, clear = np.zeros(floats, np.uint32), np.zeros(floats, np.uint32)
    parts: dict[str, TrainPart] = {}
    silo_s = []
    update = np.random.default_rng(0).standard_normal(floats, np.float32) * np.float32(0.01)
    for name in stayed:
        begun = time.process_time()
        words = np.empty(floats, np.uint32)
        quantise(update, words, bound=8.0, limit=vector.limit, rounding_key=bytes(32), offset=0)
        clear += words
        state = silo.accept_roster(states[name], rules, roster)
        states[name], parts[name] = silo.begin_step(state, rules, terms, words)
        record = states[name].record
        assert record is not None
        prg.apply(words, silo.masks(name, record))
        silo_s.append(time.process_time() - begun)
        total += words
    cohort = step.fix_cohort(parts)
    questions = {name: step.agree_question(name, cohort, parts) for name in stayed}
    signed = {}
    for name in stayed:
        states[name], signed[name] = silo.agree(states[name], rules, identities[name], questions[name])
    question = step.unmask_question(cohort, signed)
    answers = {name: silo.unmask(states[name], question) for name in stayed}
    begun = time.process_time()
    streams = step.streams(cohort, parts, answers)
    prg.apply(total, streams)
    server_s = time.process_time() - begun
    assert np.array_equal(total, clear), "the sum is right, bit for bit"
    messages = (parts[stayed[0]], questions[stayed[0]], signed[stayed[0]], question, answers[stayed[0]])
    return {
        "silo_mask_s": statistics.median(silo_s),
        "server_unmask_s": server_s,
        "streams": len(streams),
        "bytes_a_silo_beside_the_update": sum(len(message.model_dump_json()) for message in messages),
    }
