"""Messages <-> Flower's RecordDict: one ConfigRecord with the message's type, its body as canonical JSON and its
small buffer as raw bytes.

One record instead of Flower's array records halves the objects (and requests) of a small message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import ConfigRecord, RecordDict
from pydantic import ValidationError

from fedplat.canonical import canonical_json
from fedplat.errors import WireError
from fedplat.params import Vector
from fedplat.spec.model import Precision
from fedplat.wire.buffers import to_vector
from fedplat.wire.messages import WireMessage

RECORD = "fedplat"
_HINT = "check that both sides run the same version of fedplat"
Body = TypeVar("Body", bound=WireMessage, covariant=True)


@dataclass(frozen=True)
class Parcel(Generic[Body]):
    """A message and the small buffer that rides in it (empty where there is none)."""

    body: Body
    buffer: bytes = b""

    def vector(self, size: int, precision: Precision = Precision.FP32) -> Vector:
        """The buffer as `size` float32, read-only. WireError if its length differs."""
        if len(self.buffer) != size * precision.item_bytes:
            what = f"{size} numbers in {precision}"
            raise WireError(f"{type(self.body).__name__}: a buffer of {len(self.buffer)} bytes, not {what}")
        return to_vector(self.buffer, precision)


def to_record(body: WireMessage, buffer: bytes | memoryview = b"") -> RecordDict:
    """A message as Flower carries it."""
    text = canonical_json(body.model_dump(mode="json", exclude_none=True))
    return RecordDict({RECORD: ConfigRecord({"type": type(body).__name__, "body": text, "buffer": bytes(buffer)})})


def from_record(record: RecordDict, expected: type[Body]) -> Parcel[Body]:
    """The message in `record`. WireError if it is of another type, of another version or malformed."""
    config = record.config_records.get(RECORD)
    if config is None or len(record) != 1 or set(config) != {"type", "body", "buffer"}:
        raise WireError(f"not a fedplat message: {expected.__name__} expected", hint=_HINT)
    name, text, buffer = config["type"], config["body"], config["buffer"]
    if name != expected.__name__ or not isinstance(text, str) or not isinstance(buffer, bytes):
        raise WireError(f"{str(name)[:40]!r} came where {expected.__name__} was expected", hint=_HINT)
    try:
        return Parcel(expected.model_validate_json(text), buffer)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) or "body" for e in error.errors(include_url=False)[:5])
        raise WireError(f"malformed {expected.__name__}: {fields[:200]!r}", hint=_HINT) from None
