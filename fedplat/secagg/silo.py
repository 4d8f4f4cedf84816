"""A silo's side of secure aggregation: pure steps from one state to the next.

Whoever calls these writes the returned state to disk *before* the answer beside it leaves. Asked the same again, a
silo answers with the same bytes; asked differently, it refuses (`RefusedError`) and stays in the state that it is in.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fedplat.secagg import keys, prg
from fedplat.secagg.bundles import by_silo, make_shares, seal, unseal
from fedplat.secagg.cohort import check_signatures, sign_cohort
from fedplat.secagg.errors import Refusal, RefusedError
from fedplat.secagg.messages import (
    AgreeAnswer,
    AgreeQuestion,
    Member,
    Roster,
    SignedKey,
    TrainPart,
    UnmaskAnswer,
    UnmaskQuestion,
)
from fedplat.secagg.roster import roster_hash, sign_key
from fedplat.secagg.rules import SiloRules, check_cohort, check_new_roster, check_new_step
from fedplat.secagg.state import Agreed, Release, SiloState, StepRecord, finish
from fedplat.secagg.terms import StepTerms

UPLOAD_ID_BYTES = 16


def offer_key(state: SiloState, identity: ec.EllipticCurvePrivateKey, epoch: int) -> tuple[SiloState, SignedKey]:
    """This silo's key for an epoch, the same when asked again. A new epoch closes what was open."""
    if epoch == state.epoch and state.signed_key is not None:
        return state, state.signed_key
    if epoch <= state.epoch:
        raise RefusedError(Refusal.EPOCH_CLOSED)
    private = secrets.token_bytes(keys.KEY_BYTES)
    key = sign_key(identity, state.binding, epoch, state.name, private)
    return finish(state).model_copy(update={"epoch": epoch, "private_key": private, "signed_key": key}), key


def accept_roster(state: SiloState, rules: SiloRules, roster: Roster) -> SiloState:
    """Takes the one roster of the epoch; the X25519 key is erased.

    Whoever is not known yet is taken at first sight: remember `fingerprints(roster, without=state.name)` before the
    state is written. That may still fail, if another run was shown another key meanwhile.
    """
    if roster.epoch != state.epoch or state.signed_key is None:
        raise RefusedError(Refusal.EPOCH_CLOSED)
    hashed = roster_hash(state.binding, roster)
    if state.roster_hash is not None:
        if not hmac.compare_digest(state.roster_hash, hashed):
            raise RefusedError(Refusal.ROSTER_CHANGED)
        return state
    check_new_roster(state, rules, roster)
    chains = _first_chain_keys(state, roster, hashed)
    accepted = {"roster": roster, "roster_hash": hashed, "chains": chains, "private_key": None}
    return state.model_copy(update=accepted | {"next_step": roster.first_step})


def begin_step(state: SiloState, rules: SiloRules, terms: StepTerms, update: prg.Words) -> tuple[SiloState, TrainPart]:
    """Opens a step for this quantised update, and closes the steps below.

    The update is in the spool and the ledger charged before. Asked again with the spooled update, the same part is
    made again.
    """
    if state.roster_hash is None:
        raise RefusedError(Refusal.ROSTER_MISSING)
    context = terms.context(state.roster_hash)
    record = state.record
    if record is None or record.step != terms.step:
        check_new_step(state, rules, terms)
        record = _new_record(state, terms, context, update)
        state = _opened(state, record)
    elif not hmac.compare_digest(record.context, context):
        raise RefusedError(Refusal.STEP_CHANGED)
    else:
        _check_update(record, update)
    return state, _train_part(state.name, record)


def mask(state: SiloState, step: int, update: prg.Words) -> None:
    """Masks the quantised update in place: all of it, and only the one that the step was begun with."""
    record = _record_of(state, step)
    _check_update(record, update)
    prg.apply(update, masks(state.name, record))


def masks(name: str, record: StepRecord) -> list[prg.Stream]:
    """The self mask, and one mask a pair: added towards silos behind this one in the order, else subtracted."""
    order = record.silos.index
    pairs = [
        prg.Stream(keys.mask_seed(root), 1 if order(name) < order(peer) else -1) for peer, root in record.roots.items()
    ]
    return [prg.Stream(record.self_seed, 1), *pairs]


def agree(
    state: SiloState, rules: SiloRules, identity: ec.EllipticCurvePrivateKey, question: AgreeQuestion
) -> tuple[SiloState, AgreeAnswer]:
    """Signs the cohort of a step: one cohort a step, for ever."""
    record = _record_of(state, question.step)
    if record.agreed is None:
        released = check_cohort(state, rules, record, question.cohort)
        signature = sign_cohort(identity, record.context, question.cohort)
        agreed = Agreed(cohort=question.cohort, signature=signature, answer=_answer(state.name, record, question))
        return _agreed(state, record, agreed, released), AgreeAnswer(step=record.step, signature=signature)
    if record.agreed.cohort != question.cohort:
        raise RefusedError(Refusal.COHORT_CHANGED)
    return state, AgreeAnswer(step=record.step, signature=record.agreed.signature)


def unmask(state: SiloState, question: UnmaskQuestion) -> UnmaskAnswer:
    """What opens the sum over the cohort, for whoever shows that enough of its members have signed it.

    The answer is on disk since `agree`; nothing changes here.
    """
    record = _record_of(state, question.step)
    if record.agreed is None or state.roster is None:
        raise RefusedError(Refusal.NOT_AGREED)
    if record.agreed.cohort != question.cohort:
        raise RefusedError(Refusal.COHORT_CHANGED)
    check_signatures(state.roster, question.signatures, record.context, question.cohort, record.threshold)
    return record.agreed.answer


def _record_of(state: SiloState, step: int) -> StepRecord:
    if state.record is not None and state.record.step == step:
        return state.record
    if step < state.next_step:
        raise RefusedError(Refusal.STEP_CLOSED, lowest_step=state.next_step)
    raise RefusedError(Refusal.STEP_UNKNOWN)


def _first_chain_keys(state: SiloState, roster: Roster, hashed: bytes) -> dict[str, bytes]:
    assert state.private_key is not None
    peers = (key for key in roster.keys if key.name != state.name)
    return {
        peer.name: keys.chain_key(state.private_key, peer.public_key, hashed, state.name, peer.name) for peer in peers
    }


def _check_update(record: StepRecord, update: prg.Words) -> None:
    if not hmac.compare_digest(_hash(record.own_secret, update), record.update_hash):
        raise RefusedError(Refusal.UPDATE_CHANGED)


def _hash(own_secret: bytes, update: prg.Words) -> bytes:
    return keys.update_hash(own_secret, memoryview(np.ascontiguousarray(update, "<u4").data).cast("B"))


def _new_record(state: SiloState, terms: StepTerms, context: bytes, update: prg.Words) -> StepRecord:
    chains = _chains_at(state, terms.step)
    own_secret = secrets.token_bytes(keys.KEY_BYTES)
    return StepRecord(
        step=terms.step,
        context=context,
        silos=terms.silos,
        threshold=terms.threshold,
        weights=terms.weights,
        update_hash=_hash(own_secret, update),
        upload_id=secrets.token_bytes(UPLOAD_ID_BYTES),
        self_seed=secrets.token_bytes(keys.KEY_BYTES),
        own_secret=own_secret,
        roots={peer: keys.step_root(chains[peer], context) for peer in terms.silos if peer != state.name},
    )


def _opened(state: SiloState, record: StepRecord) -> SiloState:
    """The record of the step before goes, and the chain keys advance past this one's."""
    chains = _chains_at(state, record.step + 1)
    return state.model_copy(update={"chains": chains, "next_step": record.step + 1, "record": record})


def _chains_at(state: SiloState, step: int) -> dict[str, bytes]:
    chains = dict(state.chains)
    for _ in range(step - state.next_step):
        chains = {peer: keys.next_chain_key(key) for peer, key in chains.items()}
    return chains


def _train_part(name: str, record: StepRecord) -> TrainPart:
    bundles = {}
    for peer, shares in _shares(name, record).items():
        if peer != name:
            key = keys.bundle_key(record.roots[peer], name, peer, record.upload_id)
            bundles[peer] = seal(key, shares, record.context, name, peer, record.upload_id)
    return TrainPart(
        upload_id=record.upload_id,
        seed_hash=keys.seed_hash(record.upload_id, record.self_seed),
        checks={peer: keys.check_value(keys.mask_seed(root)) for peer, root in record.roots.items()},
        bundles=bundles,
    )


def _shares(name: str, record: StepRecord) -> dict[str, bytes]:
    """This silo's secrets, shared: one string of shares for every silo of the step."""
    secret_of = {peer: keys.mask_seed(root) for peer, root in record.roots.items()} | {name: record.self_seed}
    shares = make_shares(
        [secret_of[silo] for silo in record.silos], record.threshold, keys.share_seed(record.own_secret)
    )
    return dict(zip(record.silos, shares, strict=True))


def _agreed(state: SiloState, record: StepRecord, agreed: Agreed, released: tuple[Release, ...]) -> SiloState:
    # Counted when it is signed: the others can open a signed cohort without this silo's own answer.
    releases = state.releases | {record.weights: released}
    return state.model_copy(
        update={"record": record.model_copy(update={"agreed": agreed}), "releases": releases},
    )


def _answer(name: str, record: StepRecord, question: AgreeQuestion) -> UnmaskAnswer:
    held = {m.name: _held(name, record, m, question.bundles) for m in question.cohort}
    outside = [silo for silo in record.silos if silo not in held]
    return UnmaskAnswer(
        step=record.step,
        self_shares={member: shares[member] for member, shares in held.items()},
        seeds={silo: keys.mask_seed(record.roots[silo]) for silo in outside},
        pair_shares={m: {silo: shares[silo] for silo in outside} for m, shares in held.items() if m != name},
    )


def _held(name: str, record: StepRecord, member: Member, bundles: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """This silo's shares of a member's secrets, its own included."""
    if member.name == name:
        return by_silo(_shares(name, record)[name], record.silos)
    if member.name not in bundles:
        raise RefusedError(Refusal.BUNDLE_INVALID, silo=member.name)
    key = keys.bundle_key(record.roots[member.name], member.name, name, member.upload_id)
    return unseal(key, bundles[member.name], record.context, member.name, name, member.upload_id, record.silos)
