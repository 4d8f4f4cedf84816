"""Buffers by their pieces: any chunking gives one name, any cut goes on, and no flipped byte comes through."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedplat import bufferfiles
from fedplat.bufferfiles import DamagedPieceError, Incoming, Region, write_buffer
from fedplat.errors import WireError
from fedplat.spec.model import Precision
from fedplat.wire import buffers
from fedplat.wire.buffers import BufferRef, PieceHasher, num_pieces, to_bytes, to_vector

PIECE = 16
DATA = random.Random(0).randbytes(5 * PIECE + 7)
SIZES = st.integers(min_value=1, max_value=6 * PIECE)


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "PIECE_BYTES", PIECE)
        patch.setattr(bufferfiles, "PIECE_BYTES", PIECE)
        yield


def chunks(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in parts of those sizes, again and again."""
    parts, start = [], 0
    while start < len(data):
        size = sizes[len(parts) % len(sizes)]
        parts.append(data[start : start + size])
        start += size
    return parts


def write_all(incoming: Incoming, parts: list[bytes]) -> None:
    for part in parts:
        incoming.write(part)


def name_of(data: bytes) -> BufferRef:
    hasher = PieceHasher()
    hasher.update(data)
    return hasher.ref()


@given(data=st.binary(min_size=1, max_size=100), sizes=st.lists(SIZES, min_size=1, max_size=5))
def test_any_chunking_gives_the_same_name(data: bytes, sizes: list[int]) -> None:
    hasher = PieceHasher()
    for chunk in chunks(data, sizes):
        hasher.update(chunk)
    ref = hasher.ref()
    assert ref == name_of(data)
    assert len(ref.pieces) == num_pieces(len(data))


@given(data=st.binary(min_size=1, max_size=60), other=st.binary(min_size=1, max_size=60))
def test_other_bytes_have_another_name(data: bytes, other: bytes) -> None:
    assert (name_of(data).digest == name_of(other).digest) == (data == other)


def test_a_name_has_all_its_pieces() -> None:
    ref = name_of(DATA)
    for pieces in (ref.pieces[:-1], (*ref.pieces, "0" * 64), ()):
        with pytest.raises(ValidationError):
            BufferRef(size_bytes=len(DATA), pieces=pieces)
    with pytest.raises(ValueError, match="size_bytes"):
        PieceHasher().ref()


@settings(deadline=None)
@given(sizes=st.lists(SIZES, min_size=1, max_size=4), stops=st.lists(st.integers(0, 6), max_size=8))
def test_what_arrives_in_any_attempts_is_what_was_sent(sizes: list[int], stops: list[int]) -> None:
    """Each attempt is cut after so many chunks, and the next begins at `have_bytes`, as after a restart."""
    with TemporaryDirectory() as folder:
        path, ref, sent = Path(folder) / "incoming", name_of(DATA), 0
        for stop in [*stops, len(DATA)]:
            with Incoming(path, ref) as incoming:
                for chunk in chunks(DATA[incoming.have_bytes :], sizes)[:stop]:
                    incoming.write(chunk)
                    sent += len(chunk)
                done = incoming.is_complete
        assert done
        assert sent == len(DATA), "nothing is sent twice"
        with Incoming(path, ref) as incoming:
            incoming.commit(Path(folder) / "whole", durable=True)
        assert (Path(folder) / "whole").read_bytes() == DATA
        assert not path.exists()


@settings(deadline=None)
@given(place=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7), sizes=st.lists(SIZES, min_size=1, max_size=4))
def test_any_flipped_bit_is_found_on_its_way(place: int, bit: int, sizes: list[int]) -> None:
    bad = bytearray(DATA)
    bad[place] ^= 1 << bit
    with TemporaryDirectory() as folder, Incoming(Path(folder) / "incoming", name_of(DATA)) as incoming:
        with pytest.raises(DamagedPieceError, match=f"piece {place // PIECE + 1} of 6"):
            write_all(incoming, chunks(bytes(bad), sizes))
        assert incoming.have_bytes == place // PIECE * PIECE, "what was good stays"
        incoming.write(DATA[incoming.have_bytes :])
        assert incoming.is_complete


@settings(deadline=None)
@given(have=st.integers(1, len(DATA)), data=st.data())
def test_any_flipped_bit_is_found_on_the_disk(have: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, have - 1))
    bad = bytearray(DATA[:have])
    bad[place] ^= 1
    with TemporaryDirectory() as folder:
        path = Path(folder) / "incoming"
        path.write_bytes(bad)
        with Incoming(path, name_of(DATA)) as incoming:
            assert incoming.have_bytes <= have
            if incoming.have_bytes > place:  # in the piece that is open: found when it is whole
                assert place // PIECE == have // PIECE
                with pytest.raises(DamagedPieceError):
                    incoming.write(DATA[incoming.have_bytes :])
            incoming.write(DATA[incoming.have_bytes :])
            assert incoming.is_complete
        assert path.read_bytes() == DATA


@given(extra=st.binary(min_size=1, max_size=50))
def test_what_is_too_long_is_refused_or_cut(extra: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "incoming"
        with Incoming(path, name_of(DATA)) as incoming, pytest.raises(WireError, match="does not end there"):
            incoming.write(DATA + extra)
        path.write_bytes(DATA + extra)
        with Incoming(path, name_of(DATA)) as incoming:
            assert incoming.is_complete
        assert path.read_bytes() == DATA


def test_half_a_buffer_gets_no_name(tmp_path: Path) -> None:
    with Incoming(tmp_path / "incoming", name_of(DATA)) as incoming:
        incoming.write(DATA[:-1])
        with pytest.raises(WireError, match="of 87 bytes are there"):
            incoming.commit(tmp_path / "whole", durable=False)
    assert not (tmp_path / "whole").exists()
    assert (tmp_path / "incoming").stat().st_mode & 0o777 == 0o600


@given(offset=st.integers(0, 20), place=st.integers(0, len(DATA) - 1))
def test_a_region_is_good_only_whole(offset: int, place: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "buffer"
        assert not Region(path, offset, len(DATA)).is_good(name_of(DATA))
        ref = write_buffer(path, [b"x" * offset, DATA, b"after"] if offset else [DATA, b"after"])
        assert ref.size_bytes == path.stat().st_size
        region = Region(path, offset, len(DATA))
        assert region.is_good(name_of(DATA))
        assert region.read(len(DATA) - 3, 100) == DATA[-3:]
        assert not region.is_good(name_of(DATA[:-1]))
        whole = bytearray(path.read_bytes())
        whole[offset + place] ^= 1
        path.write_bytes(whole)
        assert not region.is_good(name_of(DATA))


ANY_FLOAT32 = st.integers(0, 2**32 - 1)


@given(st.lists(ANY_FLOAT32, min_size=1, max_size=20))
def test_bf16_rounds_as_pytorch_does(bits: list[int]) -> None:
    floats = np.array(bits, dtype=np.uint32).view(np.float32)
    expected = torch.from_numpy(floats.copy()).to(torch.bfloat16)
    found = np.frombuffer(to_bytes(floats, Precision.BF16), dtype="<u2")
    numbers = ~np.isnan(floats)
    np.testing.assert_array_equal(found[numbers], expected.view(torch.uint16).numpy()[numbers])
    back = to_vector(to_bytes(floats, Precision.BF16), Precision.BF16)
    np.testing.assert_array_equal(back, expected.float().numpy())  # NaN stays NaN
    assert to_bytes(back, Precision.BF16) == to_bytes(floats, Precision.BF16), "what was rounded rounds no more"


@given(st.lists(ANY_FLOAT32, max_size=20))
def test_fp32_is_every_bit_as_it_was(bits: list[int]) -> None:
    floats = np.array(bits, dtype=np.uint32).view(np.float32)
    assert to_vector(to_bytes(floats, Precision.FP32), Precision.FP32).tobytes() == floats.tobytes()


@pytest.mark.parametrize("precision", list(Precision))
def test_half_a_number_is_an_error(precision: Precision) -> None:
    with pytest.raises(ValueError, match="buffer size"):
        to_vector(b"123", precision)
