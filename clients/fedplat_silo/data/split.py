"""Which records are for testing: a keyed hash decides, so the order of rows and later additions change nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

_HASH_RANGE = 2**64


def is_test(fields: Iterable[str], split_seed: int, test_share: float) -> bool:
    """Whether the record (or patient) with these fields is in the test set. Equal fields, equal answer."""
    key = hashlib.sha256(b"fedplat/split/1" + str(split_seed).encode()).digest()
    digest = hashlib.blake2b(key=key, digest_size=8)
    for field in fields:
        encoded = field.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return int.from_bytes(digest.digest(), "big") < test_share * _HASH_RANGE


def split_rows(records: Iterable[Iterable[str]], split_seed: int, test_share: float) -> tuple[list[int], list[int]]:
    """(training rows, test rows), each in the order of the records."""
    parts: tuple[list[int], list[int]] = ([], [])
    for row, fields in enumerate(records):
        parts[is_test(fields, split_seed, test_share)].append(row)
    return parts
