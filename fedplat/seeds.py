"""Every random choice of a run comes from (seed, silo, round, purpose): never from a run id, never from the time.

So the same spec gives the same weights, and a resumed round repeats itself. Nothing secret is derived here:
keys, masks and noise take their randomness from the operating system.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum


class Purpose(StrEnum):
    """What a derived seed is for; two purposes never share a stream."""

    MODEL = "model"
    BATCHES = "batches"
    TRAINING = "training"


def derive_seed(seed: int, silo: str, round_number: int, purpose: Purpose) -> int:
    """A 63-bit seed for one silo, round and purpose: SHA-256 over the length-prefixed fields.

    `silo` is empty where all silos must agree (the initial model).
    """
    fields = [str(seed), silo, str(round_number), purpose.value]
    encoded = b"".join(len(f.encode()).to_bytes(4, "big") + f.encode() for f in fields)
    return int.from_bytes(hashlib.sha256(b"fedplat/seed/1" + encoded).digest()[:8], "big") >> 1
