from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplat.secagg.prg import CHUNK, Keystream, Stream, apply

STREAMS = [Stream(bytes([i]) * 32, 1 if i % 2 else -1) for i in range(3)]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2 * CHUNK), max_size=4), st.integers(0, 2 * CHUNK))
def test_a_vector_may_be_masked_in_parts(cuts: list[int], length: int) -> None:
    whole, parts = np.zeros(length, np.uint32), np.zeros(length, np.uint32)
    apply(whole, STREAMS)
    places = sorted({0, length, *(cut for cut in cuts if cut < length)})
    for start, stop in reversed(list(itertools.pairwise(places))):
        apply(parts[start:stop], STREAMS, start)
    assert (whole == parts).all()


def test_the_opposite_streams_take_a_mask_off() -> None:
    vector = np.arange(CHUNK + 5, dtype=np.uint32)
    apply(vector, STREAMS)
    assert (vector != np.arange(CHUNK + 5)).mean() > 0.99
    apply(vector, [Stream(s.seed, -1 if s.sign == 1 else 1) for s in STREAMS])
    assert (vector == np.arange(CHUNK + 5)).all()


def test_words_and_bytes_are_one_stream() -> None:
    words = np.zeros(CHUNK + 100, np.uint32)
    apply(words, [Stream(bytes(32), 1)])
    assert Keystream(bytes(32)).read(4 * CHUNK + 399) == words.tobytes()[: 4 * CHUNK + 399]
    assert Keystream(bytes(32)).read(0) == b""


def test_a_seed_of_another_length() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        Keystream(bytes(16))


def test_a_seed_is_not_printed() -> None:
    assert "7777" not in repr(Stream(b"7" * 32, 1))
