"""Messages <-> Flower's RecordDict: one ConfigRecord with the message's type, its body as canonical JSON and its
buffer as raw bytes.

One record instead of Flower's array records halves the objects (and requests) of a small message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from pydantic import ValidationError

from fedplat.canonical import canonical_json
from fedplat.errors import WireError
from fedplat.params import Vector
from fedplat.wire.messages import WireMessage

RECORD = "fedplat"
FLOAT32 = np.dtype("<f4")
_HINT = "check that both sides run the same version of fedplat"
Body = TypeVar("Body", bound=WireMessage, covariant=True)


@dataclass(frozen=True)
class Parcel(Generic[Body]):
    """A message and its buffer (empty where the message has none)."""

    body: Body
    buffer: bytes = b""

    def vector(self, size: int) -> Vector:
        """The buffer as `size` float32, read-only, not copied. WireError if the length differs."""
        if len(self.buffer) != size * FLOAT32.itemsize:
            raise WireError(f"{type(self.body).__name__}: a buffer of {len(self.buffer)} bytes, not {size} float32")
        return np.frombuffer(self.buffer, dtype=FLOAT32)


def to_record(body: WireMessage, vector: Vector | None = None) -> RecordDict:
    """A message as Flower carries it."""
    buffer = b"" if vector is None else np.ascontiguousarray(vector, dtype=FLOAT32).tobytes()
    text = canonical_json(body.model_dump(mode="json", exclude_none=True))
    return RecordDict({RECORD: ConfigRecord({"type": type(body).__name__, "body": text, "buffer": buffer})})


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
