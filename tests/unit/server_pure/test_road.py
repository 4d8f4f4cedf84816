from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedplat.bufferfiles import DamagedPieceError, Incoming
from fedplat.errors import ConflictError, FedplatError, WireError
from fedplat.wire.buffers import BufferRef
from fedplat_server import road as module
from fedplat_server.road import Road
from tests.support.roadscene import DATA, PIECE, Scene, named

ALIGNED = DATA[: 3 * PIECE]


def test_an_upload_arrives_under_its_name(scene: Scene) -> None:
    assert scene.announce() == 0
    assert not scene.road.accept("run", 3, "a", named(DATA))
    assert scene.send() == len(DATA)
    assert scene.road.accept("run", 3, "a", named(DATA))
    assert scene.files() == {"a.buffer": DATA}
    assert (scene.folder / "a.buffer").stat().st_mode & 0o777 == 0o600
    assert scene.folder.stat().st_mode & 0o777 == 0o700
    assert scene.announce() == len(DATA), "an answer that was lost"
    scene.road.close("run")
    assert not scene.road.accept("run", 3, "a", named(DATA))
    assert scene.files() == {"a.buffer": DATA}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    cuts=st.lists(st.tuples(st.integers(0, len(DATA)), st.booleans()), max_size=6),
    sizes=st.lists(st.integers(1, 2 * PIECE), min_size=1),
)
def test_it_goes_on_at_any_byte_also_in_another_process(
    scene: Scene, cuts: list[tuple[int, bool]], sizes: list[int]
) -> None:
    shutil.rmtree(scene.folder, ignore_errors=True)
    scene.restart()
    sent, chunk = 0, iter(sizes * len(DATA))
    for cut, dies in [*sorted(cuts), (len(DATA), False)]:
        have = scene.announce()
        assert have == sent, "nothing that came is sent again"
        while have < cut:
            upload = scene.upload(have)
            end = min(cut, have + upload.size_bytes)
            while have < end:
                data = DATA[have : min(end, have + next(chunk))]
                have = upload.write(data)
                sent += len(data)
        if dies:
            scene.road.close("run")
            scene.restart()
    assert scene.announce() == len(DATA)
    assert sent == len(DATA)
    assert scene.road.accept("run", 3, "a", named(DATA))
    assert scene.files() == {"a.buffer": DATA}
    scene.road.close("run")


def test_what_arrived_before_a_restart_is_there(scene: Scene) -> None:
    scene.announce()
    scene.send()
    scene.restart()
    assert not scene.road.accept("run", 3, "a", named(DATA)), "nobody has said yet what should be there"
    assert scene.announce() == len(DATA)
    assert scene.road.accept("run", 3, "a", named(DATA))


def test_what_was_damaged_on_disk_before_a_restart_comes_again(scene: Scene) -> None:
    scene.announce()
    scene.send()
    path = scene.folder / "a.buffer"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    scene.restart()
    assert scene.announce() == 0
    scene.send()
    assert scene.files() == {"a.buffer": DATA}


def test_what_is_complete_but_has_no_name_yet_gets_it(scene: Scene) -> None:
    scene.folder.mkdir(mode=0o700)
    (scene.folder / "a.incoming").write_bytes(DATA)
    assert scene.announce() == len(DATA)
    assert scene.files() == {"a.buffer": DATA}


def test_what_another_step_left_is_not_mixed_in(scene: Scene) -> None:
    scene.folder.mkdir(mode=0o700)
    for old in (DATA[: 2 * PIECE] + bytes(3 * PIECE), DATA + b"more", bytes(len(DATA)), b"?"):
        (scene.folder / "a.incoming").write_bytes(old)
        have = scene.announce()
        assert have in (0, 1, 2 * PIECE, len(DATA))
        if old == b"?":  # less than a piece, so it is known to be wrong only when the piece is whole
            with pytest.raises(DamagedPieceError):
                scene.send(start=have)
            have = scene.announce()
        scene.send(start=have)
        assert scene.files() == {"a.buffer": DATA}
        (scene.folder / "a.buffer").unlink()
        scene.restart()


def test_a_second_announcement_ends_the_first_connection(scene: Scene) -> None:
    scene.announce()
    late = scene.upload(0)
    late.write(DATA[:10])
    assert scene.announce() == 10
    with pytest.raises(DamagedPieceError, match="announced anew"):
        late.write(DATA[10:20])
    assert scene.send(start=10) == len(DATA)
    with pytest.raises(DamagedPieceError):
        late.write(DATA[10:20])
    assert scene.files() == {"a.buffer": DATA}


def test_a_damaged_piece_is_found_when_it_is_whole_and_only_it_comes_again(scene: Scene) -> None:
    scene.announce()
    scene.send(stop=2 * PIECE)
    upload = scene.upload(2 * PIECE)
    assert upload.write(b"?" + DATA[2 * PIECE + 1 : 3 * PIECE - 1]) == 3 * PIECE - 1
    with pytest.raises(DamagedPieceError, match="piece 3 of 6 was damaged"):
        upload.write(DATA[3 * PIECE - 1 : 3 * PIECE])
    assert scene.files() == {"a.incoming": DATA[: 2 * PIECE]}
    assert scene.announce() == 2 * PIECE
    scene.send(start=2 * PIECE)
    assert scene.files() == {"a.buffer": DATA}


@pytest.mark.parametrize("offset", [1, PIECE, len(DATA), len(DATA) + 1, 10**17])
def test_it_does_not_begin_elsewhere_than_where_it_ended(scene: Scene, offset: int) -> None:
    with pytest.raises(DamagedPieceError, match="does not go on"):
        scene.upload(0)
    scene.announce()
    with pytest.raises(DamagedPieceError, match=f"at byte {offset}"):
        scene.upload(offset)


@pytest.mark.parametrize("data", [DATA, ALIGNED])
def test_nothing_comes_after_the_end(scene: Scene, data: bytes) -> None:
    scene.restart(len(data))
    scene.announce(data)
    last = scene.upload(0)
    scene.send(data)
    for offset in (len(data), 0):
        with pytest.raises(DamagedPieceError):
            scene.upload(offset)
    with pytest.raises(WireError, match="does not end there"):
        last.write(b"x")
    assert scene.files() == {"a.buffer": data}


def test_more_than_was_announced_is_refused_and_written_nowhere(scene: Scene) -> None:
    scene.announce()
    scene.send(stop=5 * PIECE)
    with pytest.raises(WireError, match="does not end there"):
        scene.upload(5 * PIECE).write(DATA[5 * PIECE :] + b"x")
    assert scene.files() == {"a.incoming": DATA[: 5 * PIECE]}


@pytest.mark.parametrize("size", [1, len(DATA) - 1, len(DATA) + 1, 10**9])
def test_only_the_expected_length_may_come(scene: Scene, size: int) -> None:
    ref = BufferRef(size_bytes=size, pieces=("0" * 64,) * -(-size // PIECE)) if size < 10**6 else None
    ref = ref or BufferRef.model_construct(size_bytes=size, pieces=("0" * 64,))
    with pytest.raises(WireError, match=f"announces {size} bytes for step 3 of run run, not {len(DATA)}"):
        scene.road.announce("a", "run", 3, ref)
    assert not scene.folder.exists()


@pytest.mark.parametrize(
    ("silo", "run", "step"), [("b", "run", 3), ("a", "other", 3), ("a", "run", 2), ("a", "run", 4)]
)
def test_what_nobody_waits_for_is_refused(scene: Scene, silo: str, run: str, step: int) -> None:
    scene.announce()
    for ask in (
        lambda: scene.road.announce(silo, run, step, named(DATA)),
        lambda: scene.road.upload(silo, run, step, 0),
    ):
        with pytest.raises(ConflictError) as caught:
            ask()
        assert caught.value.hint == "Its round is over."


def test_another_update_cannot_take_the_place_of_one_that_counts(scene: Scene) -> None:
    scene.announce()
    scene.send()
    assert scene.road.accept("run", 3, "a", named(DATA))
    with pytest.raises(ConflictError, match="another buffer counts"):
        scene.announce(DATA[::-1])
    assert scene.announce() == len(DATA)
    assert scene.files() == {"a.buffer": DATA}


def test_an_update_that_its_silo_has_lost_before_it_counted_makes_room_for_another(scene: Scene) -> None:
    scene.announce()
    scene.send()
    assert scene.announce(DATA[::-1]) == 0
    assert not scene.road.accept("run", 3, "a", named(DATA))
    scene.send(DATA[::-1])
    assert scene.road.accept("run", 3, "a", named(DATA[::-1]))
    assert scene.files() == {"a.buffer": DATA[::-1]}


def test_a_silo_that_is_asked_again_cannot_be_written_to_by_its_old_connection(scene: Scene) -> None:
    scene.announce()
    late = scene.upload(0)
    scene.expect("a")
    scene.announce()
    scene.send()
    with pytest.raises(DamagedPieceError):
        late.write(b"late")
    assert scene.files() == {"a.buffer": DATA}


def test_an_update_that_was_made_again_takes_the_place_of_a_part(scene: Scene) -> None:
    scene.announce()
    scene.send(stop=100)
    assert scene.announce(DATA[::-1]) == 0
    scene.send(DATA[::-1])
    assert scene.files() == {"a.buffer": DATA[::-1]}


def test_after_the_end_of_the_step_nothing_is_taken_and_no_file_is_made(scene: Scene) -> None:
    scene.announce()
    upload = scene.upload(0)
    upload.write(DATA[:10])
    scene.road.close("run")
    shutil.rmtree(scene.folder)
    with pytest.raises(DamagedPieceError, match="its step is over"):
        upload.write(DATA[10:20])
    for ask in (scene.announce, lambda: scene.upload(10)):
        with pytest.raises(ConflictError, match="neither offers nor expects"):
            ask()
    scene.road.close("run")
    scene.road.check("run")
    assert scene.road.transfers("run") == ()
    assert not scene.folder.exists()


@pytest.mark.parametrize("asks", ["announce", "upload"])
def test_an_end_while_a_request_is_on_its_way_leaves_no_file(
    scene: Scene, asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step ends after the request has found what is expected, and before it opens the file."""
    if asks == "upload":
        scene.announce()
    real = Road._expected

    def ends(road: Road, *of_whom: object) -> object:
        found = real(road, *of_whom)  # type: ignore[arg-type]
        road.close("run")
        shutil.rmtree(scene.folder, ignore_errors=True)
        return found

    monkeypatch.setattr(Road, "_expected", ends)
    with pytest.raises(FedplatError) as caught:
        scene.announce() if asks == "announce" else scene.upload(0)
    assert isinstance(caught.value, ConflictError | DamagedPieceError)
    assert not scene.folder.exists()


def test_silos_do_not_touch_each_other(scene: Scene) -> None:
    scene.expect("b")
    other = DATA[::-1]
    scene.announce()
    scene.announce(other, "b")

    def go_on(silo: str, data: bytes) -> None:
        for stop in range(10, len(data) + 10, 10):
            scene.send(data, silo, stop - 10, min(stop, len(data)))

    threads = [threading.Thread(target=go_on, args=parts) for parts in (("a", DATA), ("b", other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scene.files() == {"a.buffer": DATA, "b.buffer": other}
    assert [t.silo for t in scene.road.transfers("run")] == ["a", "b"]


def test_the_file_of_a_broken_attempt_is_not_kept_open(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Incoming] = []

    class Counted(Incoming):
        def __init__(self, path: Path, ref: BufferRef) -> None:
            super().__init__(path, ref)
            opened.append(self)

    monkeypatch.setattr(module, "Incoming", Counted)
    for _ in range(3):
        scene.announce()
    assert [incoming._fd >= 0 for incoming in opened] == [False, False, True]
    scene.road.close("run")
    assert opened[-1]._fd < 0
