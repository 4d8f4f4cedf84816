from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load_file

from fedplat import durable
from fedplat.canonical import canonical_json, sha256_hex
from fedplat.errors import LayoutError
from fedplat.params import Group, Layout, Parameter, Vector
from fedplat.spec.model import Precision
from fedplat.wire.buffers import PieceHasher, to_bytes
from fedplat_server import checkpoints as module
from fedplat_server import vectors
from fedplat_server.checkpoints import Checkpoint, CheckpointError, Checkpoints, export_weights
from fedplat_server.vectors import blocks_of

SPEC_HASH = "5" * 64
MakeVector = Callable[..., Vector]
SLOTS = st.text("abc_", min_size=1, max_size=4)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), min_size=1).filter(
    lambda name: name != "__metadata__"
)
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", SPEC_HASH)


@pytest.fixture
def saved(checkpoints: Checkpoints, layout: Layout, vector: MakeVector) -> Checkpoint:
    return write(checkpoints, 3, layout, vector(seed=0), {"m_t": vector(1), "v_t": vector(2)})


def write(
    checkpoints: Checkpoints, round_number: int, layout: Layout, weights: Vector, state: dict[str, Vector]
) -> Checkpoint:
    """A checkpoint as a round writes it, block by block."""
    with checkpoints.write(round_number, layout) as writer:
        for block in blocks_of(layout.size):
            writer.add(weights[block], {slot: kept[block] for slot, kept in state.items()})
        return writer.commit()


def manifest_path(saved: Checkpoint) -> Path:
    return saved.path.with_suffix(".json")


@st.composite
def models(draw: st.DrawFn) -> tuple[Layout, Vector, dict[str, Vector]]:
    names = draw(st.lists(NAMES, min_size=1, unique=True))
    shapes = st.one_of(st.just(()), array_shapes(min_side=0, max_dims=3, max_side=4))
    parameters = tuple(Parameter(n, draw(shapes), draw(st.sampled_from(["float32", "bfloat16"]))) for n in names)
    groups = tuple(draw(st.sampled_from(Group)) for _ in names)
    layout = Layout(parameters, groups)
    assume(layout.size)
    vectors = arrays(np.float32, layout.size, elements=st.floats(width=32))
    return layout, draw(vectors), draw(st.dictionaries(SLOTS, vectors, max_size=3))


@one_folder
@given(model=models(), round_number=st.integers(0, 10**9), block=st.integers(1, 70))
def test_what_is_saved_is_what_is_loaded_whatever_the_size_of_a_block(
    model: tuple[Layout, Vector, dict[str, Vector]], round_number: int, block: int, tmp_path: Path
) -> None:
    layout, weights, state = model
    with pytest.MonkeyPatch.context() as patch:
        for where in (vectors, module):
            patch.setattr(where, "BLOCK", block)
        written = write(Checkpoints(tmp_path, SPEC_HASH), round_number, layout, weights, state)
    found = Checkpoints(tmp_path, SPEC_HASH).load(round_number)
    assert found == written
    assert found.weights.vector().tobytes() == weights.tobytes()
    assert found.layout == layout
    assert found.manifest.layout_fingerprint == layout.fingerprint
    assert {slot: kept.vector().tobytes() for slot, kept in found.state.items()} == {
        slot: kept.tobytes() for slot, kept in state.items()
    }
    hasher = PieceHasher()
    hasher.update(to_bytes(weights, Precision.FP32))
    assert found.manifest.weights == hasher.ref(), "silos fetch the weights by this name"
    assert found.weights.region.is_good(found.manifest.weights)


def test_plain_safetensors_reads_it_by_the_parameters_names(
    saved: Checkpoint, layout: Layout, vector: MakeVector
) -> None:
    arrays_by_name = load_file(saved.path)
    for name, view in layout.split(vector(seed=0)).items():
        np.testing.assert_array_equal(arrays_by_name[name], view, strict=True)
    for slot, seed in (("m_t", 1), ("v_t", 2)):
        for name, view in layout.split(vector(seed)).items():
            np.testing.assert_array_equal(arrays_by_name[f"fedplat.strategy/{slot}/{name}"], view, strict=True)
    assert len(arrays_by_name) == 3 * len(layout.shared)


def test_an_export_holds_the_shared_parameters_and_nothing_else(
    layout: Layout, vector: MakeVector, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    assert export_weights(path, vector(seed=0), layout) == durable.sha256_file(path)
    assert layout.join(load_file(path)).tobytes() == vector(seed=0).tobytes()
    assert load_file(path).keys() == {p.name for p in layout.shared}
    with pytest.raises(CheckpointError, match="is missing"):
        export_weights(tmp_path / "nowhere" / "model.safetensors", vector(seed=0), layout)


def test_equal_contents_give_equal_bytes(layout: Layout, vector: MakeVector, tmp_path: Path) -> None:
    state = {"v_t": vector(1), "m_t": vector(2)}
    files = [
        write(Checkpoints(tmp_path / str(i), SPEC_HASH), 1, layout, vector(0), dict(items)).path.read_bytes()
        for i, items in enumerate([state.items(), reversed(state.items())])
    ]
    assert files[0] == files[1]


def test_what_is_not_whole_is_not_a_checkpoint(checkpoints: Checkpoints, layout: Layout, vector: MakeVector) -> None:
    old = checkpoints.save(1, vector(1), layout)
    with pytest.raises(LayoutError, match="of 21 elements does not fit a layout of 22"):
        checkpoints.save(1, vector(2)[:21], layout)
    with checkpoints.write(1, layout) as writer:
        writer.add(vector(2))
        writer.add(vector(2))
        with pytest.raises(LayoutError, match="of 44 elements"):
            writer.commit()
    with checkpoints.write(1, layout) as writer:
        writer.add(vector(2))  # and an error, or a stop, before the commit
    assert checkpoints.load(1).weights.vector().tobytes() == vector(1).tobytes()
    assert len(list(old.path.parent.iterdir())) == 2


def test_a_copy_for_another_run_has_the_weights_and_the_state(saved: Checkpoint, tmp_path: Path) -> None:
    other = Checkpoints(tmp_path / "other", SPEC_HASH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 5)
        Checkpoints(saved.path.parent, SPEC_HASH).copy_to(other, 3)
    assert other.load(3).path.read_bytes() == saved.path.read_bytes()


def test_what_no_round_owns_is_removed(checkpoints: Checkpoints, layout: Layout, vector: MakeVector) -> None:
    for r in (1, 2):
        saved = checkpoints.save(r, vector(r), layout)
    folder = saved.path.parent
    (folder / ".round-0000003.safetensors.0123456789ab.part").write_text("killed while it was written")
    (folder / "round-0000003.safetensors").write_text("killed before its manifest was there")
    assert checkpoints.discard_after(1) == [2]
    assert sorted(p.name for p in folder.iterdir()) == ["round-0000001.json", "round-0000001.safetensors"]
    assert Checkpoints(folder / "nowhere", SPEC_HASH).discard_after(0) == []


def test_files_are_private_and_nothing_else_is_left(saved: Checkpoint) -> None:
    assert sorted(os.listdir(saved.path.parent)) == ["round-0000003.json", "round-0000003.safetensors"]
    assert stat.S_IMODE(saved.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(manifest_path(saved).stat().st_mode) == 0o600
    assert stat.S_IMODE(saved.path.parent.stat().st_mode) == 0o700
    assert saved.sha256 == durable.sha256_file(saved.path)
    assert json.loads(manifest_path(saved).read_bytes())["spec_hash"] == SPEC_HASH


@one_folder
@given(data=st.data())
def test_a_changed_byte_is_always_found(data: st.DataObject, saved: Checkpoint, checkpoints: Checkpoints) -> None:
    path = data.draw(st.sampled_from([saved.path, manifest_path(saved)]))
    good = path.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=path.name):
            checkpoints.load(3)
    finally:
        path.write_bytes(good)
    checkpoints.load(3)


@one_folder
@given(data=st.data())
def test_a_file_of_another_length_is_always_found(
    data: st.DataObject, saved: Checkpoint, checkpoints: Checkpoints
) -> None:
    path = data.draw(st.sampled_from([saved.path, manifest_path(saved)]))
    good = path.read_bytes()
    length = data.draw(st.integers(0, len(good) - 1))
    try:
        for bad in (good[:length], good + good[length:]):
            path.write_bytes(bad)
            with pytest.raises(CheckpointError, match=path.name):
                checkpoints.load(3)
    finally:
        path.write_bytes(good)


def test_a_missing_file_is_named(saved: Checkpoint, checkpoints: Checkpoints) -> None:
    saved.path.unlink()
    with pytest.raises(CheckpointError, match=f"{saved.path} is missing"):
        checkpoints.load(3)
    with pytest.raises(CheckpointError, match=r"round-0000004\.json is missing"):
        checkpoints.load(4)


def test_a_checkpoint_of_another_run_or_round_is_refused(saved: Checkpoint, checkpoints: Checkpoints) -> None:
    with pytest.raises(CheckpointError, match="belongs to round 3 of spec 555555555555"):
        Checkpoints(saved.path.parent, "6" * 64).load(3)
    manifest_path(saved).rename(manifest_path(saved).with_name("round-0000009.json"))
    with pytest.raises(CheckpointError, match="belongs to round 3"):
        checkpoints.load(9)


def test_the_latest_good_one_is_found_past_damaged_ones(
    checkpoints: Checkpoints, layout: Layout, vector: MakeVector
) -> None:
    assert checkpoints.latest_good() == (None, ())
    saves = [checkpoints.save(r, vector(r), layout) for r in range(5)]
    with saves[4].path.open("r+b") as file:
        file.truncate(100)
    manifest_path(saves[3]).write_text("[]")
    found, damaged = checkpoints.latest_good()
    assert found is not None
    assert found.manifest.round == 2
    assert found.weights.vector().tobytes() == vector(2).tobytes()
    assert [error.message.split(" ", 2)[1] for error in damaged] == [str(saves[4].path), str(manifest_path(saves[3]))]
    assert "has 100 bytes instead of" in damaged[0].message


def test_pruning_keeps_the_newest(checkpoints: Checkpoints, layout: Layout, vector: MakeVector) -> None:
    for r in (0, 1, 2, 10, 11):
        saved = checkpoints.save(r, vector(r), layout)
    saved.path.with_name("round-notes.json").write_text("mine")
    assert checkpoints.prune(keep_last=2) == [0, 1, 2]
    assert checkpoints.rounds() == [10, 11]
    assert len(list(saved.path.parent.iterdir())) == 5
    assert checkpoints.prune(keep_last=9) == []
    with pytest.raises(ValueError, match="keep_last is 0"):
        checkpoints.prune(keep_last=0)


class FailsOnce(durable.Filesystem):
    """A disk that is full for one step."""

    def __init__(self, failing_step: int | None) -> None:
        self._failing_step = failing_step
        self.num_steps = 0

    def __getattribute__(self, name: str) -> object:
        if name in vars(durable.Filesystem):
            self.num_steps += 1
            if self.num_steps == self._failing_step:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().__getattribute__(name)


def test_a_save_that_fails_at_any_step_leaves_whole_checkpoints_only(
    layout: Layout, vector: MakeVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_on(disk: FailsOnce) -> tuple[Vector, list[CheckpointError]]:
        checkpoints = Checkpoints(tmp_path / str(disk._failing_step), SPEC_HASH)
        checkpoints.save(1, vector(1), layout)
        checkpoints.save(2, vector(2), layout)
        failures: list[CheckpointError] = []
        with monkeypatch.context() as patch:
            patch.setattr(durable, "filesystem", disk)
            try:
                checkpoints.save(2, vector(3), layout)
            except CheckpointError as error:
                failures.append(error)
        found, damaged = checkpoints.latest_good()
        assert damaged == ()
        assert found is not None
        return found.weights.vector(), failures

    whole = FailsOnce(None)
    assert save_on(whole)[1] == []
    outcomes = set()
    for step in range(1, whole.num_steps + 1):
        weights, failures = save_on(FailsOnce(step))
        assert "cannot be written: No space left" in failures[0].message
        outcomes |= {seed for seed in (1, 2, 3) if weights.tobytes() == vector(seed).tobytes()}
    assert outcomes == {1, 2, 3}


def test_a_parameter_that_would_hide_the_state_is_refused(tmp_path: Path) -> None:
    for name in ("__metadata__", "fedplat.strategy/m_t/w"):
        layout = Layout((Parameter(name, (2,), "float32"),), (Group.SHARED,))
        with pytest.raises(LayoutError, match="cannot be named"):
            Checkpoints(tmp_path, SPEC_HASH).save(1, np.zeros(2, dtype=np.float32), layout)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_a_later_version_is_named_as_such(saved: Checkpoint, checkpoints: Checkpoints) -> None:
    body = json.loads(manifest_path(saved).read_bytes())
    del body["manifest_sha256"]
    body |= {"format": 3, "new": True}
    body["manifest_sha256"] = sha256_hex(canonical_json(body))
    manifest_path(saved).write_text(canonical_json(body))
    with pytest.raises(CheckpointError, match=r"does not understand \(format, new\)"):
        checkpoints.load(3)
