"""Weights on their way to silos: small ones in the message itself, large ones by the road."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedplat.bufferfiles import Region, write_buffer
from fedplat.durable import make_private_dir
from fedplat.spec.model import Precision
from fedplat.wire.buffers import BufferRef, to_bytes
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
    if not context.by_road:
        return Outgoing(None, to_bytes(model.weights.vector(), context.spec.transport.precision))
    ref, region = context.road.offered(context.run_id) or _large(context, model)
    context.road.offer(context.run_id, ref, region, frozenset(m.name for m in members))
    return Outgoing(ref)


def _large(context: RunContext, model: Checkpoint) -> tuple[BufferRef, Region]:
    """Where the bytes lie; in another precision they are written once a step, however often silos are asked."""
    precision = context.spec.transport.precision
    if precision is Precision.FP32:
        return model.manifest.weights, model.weights.region
    path = context.staging.weights_path
    make_private_dir(path.parent)
    ref = write_buffer(path, (to_bytes(block, precision) for block in model.weights.blocks()))
    return ref, Region(path, 0, ref.size_bytes)


def expect_upload(context: RunContext, step: int, silo: str) -> None:
    """Let a silo bring a buffer of the model's size by the road, if that is how it comes."""
    if not context.by_road:
        return
    paths = context.staging.incoming_path(silo), context.staging.buffer_path(silo)
    context.road.expect(context.run_id, step, silo, context.buffer_bytes, *paths)
