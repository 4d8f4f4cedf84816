"""Weights on their way to silos: small ones in the message itself, large ones by the road."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from fedplat.bufferfiles import Region, write_buffer
from fedplat.durable import make_private_dir
from fedplat.spec.model import Precision
from fedplat.wire.buffers import INLINE_BYTES, BufferRef, PieceHasher, to_bytes
from fedplat_server.checkpoints import Checkpoint
from fedplat_server.context import RunContext
from fedplat_server.registry import Member


@dataclass(frozen=True)
class Outgoing:
    """`ref` names a large buffer that is offered on the road; else `inline` goes into the message."""

    ref: BufferRef | None
    inline: bytes | memoryview = b""


def outgoing(context: RunContext, model: Checkpoint, members: Sequence[Member]) -> Outgoing:
    """The weights in the run's precision. Large ones lie where the checkpoint has them, once for all `members`."""
    if not context.weights_by_road:
        return Outgoing(None, to_bytes(model.weights.vector(), context.spec.transport.precision))
    ref, region = context.road.offered(context.run_id) or _large(context, model)
    context.road.offer(context.run_id, ref, region, frozenset(m.name for m in members))
    return Outgoing(ref)


def digest_of(context: RunContext, model: Checkpoint) -> str:
    """What weights are known by as they travel: of a message's bytes SHA-256, of a large buffer its name's digest."""
    if not context.weights_by_road:
        return sha256(to_bytes(model.weights.vector(), context.spec.transport.precision)).hexdigest()
    offered = context.road.offered(context.run_id)
    if offered is not None:
        return offered[0].digest
    if context.spec.transport.precision is Precision.FP32:
        return model.manifest.weights.digest
    hasher = PieceHasher()
    for block in model.weights.blocks():
        hasher.update(to_bytes(block, context.spec.transport.precision))
    return hasher.ref().digest


def _large(context: RunContext, model: Checkpoint) -> tuple[BufferRef, Region]:
    """Where the bytes lie; in another precision they are written once a step, however often silos are asked."""
    precision = context.spec.transport.precision
    if precision is Precision.FP32:
        return model.manifest.weights, model.weights.region
    path = context.staging.weights_path
    make_private_dir(path.parent)
    ref = write_buffer(path, (to_bytes(block, precision) for block in model.weights.blocks()))
    return ref, Region(path, 0, ref.size_bytes)


def expect_upload(context: RunContext, step: int, silo: str, size_bytes: int) -> None:
    """Let a silo bring a buffer of this size by the road, if that is how it comes."""
    if size_bytes <= INLINE_BYTES:
        return
    paths = context.staging.incoming_path(silo), context.staging.buffer_path(silo)
    context.road.expect(context.run_id, step, silo, size_bytes, *paths)
