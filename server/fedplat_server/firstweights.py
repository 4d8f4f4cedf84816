"""The weights of round 0: from the file that was submitted with the run, or from one silo, who builds the model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from fedplat.bufferfiles import Region
from fedplat.errors import LayoutError
from fedplat.params import Layout, Vector
from fedplat.reasons import PASSING, Code, Reason
from fedplat.wire.buffers import to_vector
from fedplat.wire.messages import JoinReply, WeightsReply, WeightsRequest, layout_from_wire
from fedplat_server.checkpoints import Checkpoint
from fedplat_server.context import RunContext
from fedplat_server.exchange import Given, Inquiry
from fedplat_server.outgoing import expect_upload
from fedplat_server.recruiting import RunFailed, RunPaused
from fedplat_server.registry import Member
from fedplat_server.uploads import named
from fedplat_server.vectors import StoredVector

_STEP = 0  # of uploads before the first round


def init_fingerprint(path: Path, accepted: Mapping[str, JoinReply]) -> str | None:
    """The layout that the init file fits, if there is one: that of the first silo whose parameters it has."""
    if not path.exists():
        return None
    for silo in sorted(accepted):
        layout = layout_from_wire(accepted[silo].layout)
        try:
            _check(path, layout)
        except LayoutError:
            continue
        return layout.fingerprint
    raise RunFailed("the initial weights fit the model of no silo; compare names and shapes of the parameters")


def _check(path: Path, layout: Layout) -> None:
    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        for p in layout.shared:
            if p.name not in names or tuple(file.get_slice(p.name).get_shape()) != p.shape:
                raise LayoutError(f"parameter {p.name!r} is missing, or has another shape than {p.shape}")


def save_from_file(path: Path, context: RunContext) -> Checkpoint:
    """The checkpoint of round 0 from a safetensors file, one parameter at a time."""
    with safe_open(path, framework="np") as file:
        parameters = (file.get_tensor(p.name).astype(np.float32, copy=False).ravel() for p in context.layout.shared)
        return _save(context, parameters)


def save_from_silo(inquiry: Inquiry[WeightsReply], context: RunContext, members: Sequence[Member]) -> Checkpoint:
    """The checkpoint of round 0 from the first of `members` that sends its weights: all build the same from the run's
    seed. RunFailed if all of them can't, RunPaused if some did not answer."""
    said: dict[str, Reason] = {}
    for member in members:
        try:
            given = _ask(inquiry, context, member)
            blocks = _blocks(context, given) if given is not None and given.failed is None else None
            if blocks is not None:
                return _save(context, blocks)
        finally:
            context.road.close(context.run_id)
            context.staging.clear()
        failed = Reason.of(Code.NO_ANSWER) if given is None else given.failed
        said[member.name] = failed or Reason.of(Code.MESSAGE_INVALID)
    text = f"no silo sent the initial weights ({named(said) or 'none of them is enrolled now'})"
    if said and all(reason.code not in PASSING for reason in said.values()):
        raise RunFailed(text)
    raise RunPaused(text, "too_few_silos")


def _ask(inquiry: Inquiry[WeightsReply], context: RunContext, member: Member) -> Given[WeightsReply] | None:
    """The answer of one silo; None if it does not come in time, or in time by a line that moves."""
    expect_upload(context, _STEP, member.name, context.weights_bytes)
    inquiry.ask([member], WeightsRequest(run=context.run_id, spec_hash=context.spec.hash))
    silo, begun_s, timeout_s = member.name, time.monotonic(), context.spec.rounds.timeout_s
    while silo in inquiry.waiting_for:
        if time.monotonic() >= context.road.deadline_s(context.run_id, silo, begun_s, timeout_s):
            break
        context.road.check(context.run_id)
        for given in inquiry.answers(1.0):
            if given.silo == silo:
                return given
    return None


def _blocks(context: RunContext, given: Given[WeightsReply]) -> Iterator[Vector] | None:
    """The weights that came, in the message or by the road; None if they are not what was asked for."""
    ref, precision = given.parcel.body.buffer, context.spec.transport.precision
    if ref is None:
        if len(given.parcel.buffer) != context.weights_bytes:
            return None
        return iter((to_vector(given.parcel.buffer, precision),))
    if given.parcel.buffer or not context.road.accept(context.run_id, _STEP, given.silo, ref):
        return None
    return StoredVector(Region(context.staging.buffer_path(given.silo), 0, ref.size_bytes), precision).blocks()


def _save(context: RunContext, parts: Iterator[Vector]) -> Checkpoint:
    with context.checkpoints.write(0, context.layout) as writer:
        for part in parts:
            if not np.isfinite(part).all():
                raise RunFailed("the initial weights hold values that are not finite")
            writer.add(part)
        return writer.commit()
