"""Arrays in shards: read by Zarr itself, faults of the disk found, one object per shard."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from unetpp.errors import OutputError, StoreError
from unetpp.geometry import Box
from unetpp.levels import Levels, chunk_side, level_shapes, level_shard
from unetpp.tiling import Shard, TilePlan, make_plan


def make_levels(folder: Path, height: int = 150, width: int = 210, planes: int | None = None) -> Levels:
    levels = Levels(folder, make_plan(height, width, halo=16, multiple=16, core=64, shard=128), "values", planes)
    levels.create_level(0)
    return levels


def draw(plan: TilePlan, planes: int | None = None, seed: int = 0) -> NDArray[np.uint8]:
    front = () if planes is None else (planes,)
    values = np.array([0, 3, 255], np.uint8)
    return values[np.random.default_rng(seed).integers(0, 3, (*front, plan.height, plan.width))]


def fill(levels: Levels, values: NDArray[np.uint8]) -> None:
    for shard in levels.plan.shards():
        levels.write_shard(shard, values[(..., *shard.box.slices())])


def opened(levels: Levels, level: int = 0) -> zarr.Array[Any]:
    return zarr.open_array(levels.folder / levels.name / str(level), mode="r")


@pytest.mark.parametrize("planes", [None, 1, 3])
def test_zarr_reads_what_is_written_and_we_what_zarr_writes(tmp_path: Path, planes: int | None) -> None:
    for name in ("ours", "zarrs"):
        (tmp_path / name).mkdir()
    ours, theirs = (make_levels(tmp_path / name, planes=planes) for name in ("ours", "zarrs"))
    values = draw(ours.plan, planes)
    fill(ours, values)
    array = zarr.open_array(theirs.folder / "values" / "0").with_config({"write_empty_chunks": True})
    array[...] = values
    assert np.array_equal(opened(ours)[...], values)
    for box in (Box(0, 0, 150, 210), Box(100, 120, 149, 200), Box(63, 64, 65, 65), Box(128, 128, 150, 210)):
        assert np.array_equal(theirs.read(box), values[(..., *box.slices())])
        for plane in range(planes or 0):
            assert np.array_equal(theirs.read(box, plane=plane), values[(plane, *box.slices())])
    for shard in ours.plan.shards():
        assert ours.shard_object(shard).read_bytes() == theirs.shard_object(shard).read_bytes()


@pytest.mark.parametrize("planes", [None, 2])
def test_chunks_that_are_not_given_hold_no_data(tmp_path: Path, planes: int | None) -> None:
    levels = make_levels(tmp_path, planes=planes)
    values = draw(levels.plan, planes)
    chunks = dict(levels.encode(values[..., :128, :128]))
    levels.write_chunks(0, 0, 0, {place: chunk for place, chunk in chunks.items() if place[-2:] != (1, 0)})
    values[..., 64:128, :64] = 255
    assert np.array_equal(levels.read(Box(0, 0, 128, 128)), values[..., :128, :128])
    expected = levels.shard_object(levels.plan.shards()[0]).read_bytes()
    levels.write_shard(levels.plan.shards()[0], values[..., :128, :128])
    assert levels.shard_object(levels.plan.shards()[0]).read_bytes() == expected


def test_coarser_levels_have_smaller_shards_where_they_are_smaller(tmp_path: Path) -> None:
    plan = make_plan(1100, 700, halo=16, multiple=16, core=64, shard=1024)
    levels = Levels(tmp_path, plan, "values")
    for level, shape in enumerate(level_shapes(plan)):
        levels.create_level(level)
        side = level_shard(plan, level)
        values = np.random.default_rng(level).integers(0, 255, shape, dtype=np.uint8)
        for row in range(-(-shape[0] // side)):
            for col in range(-(-shape[1] // side)):
                part = values[row * side : (row + 1) * side, col * side : (col + 1) * side]
                levels.write_chunks(level, row, col, dict(levels.encode(part)))
        assert np.array_equal(opened(levels, level)[...], values)
        assert np.array_equal(levels.read(Box(0, 0, *shape), level), values)
    with pytest.raises(StoreError, match="not a readable array"):
        Levels(tmp_path, plan, "others").read(Box(0, 0, 1, 1), 1)


def test_each_shard_is_one_object_even_where_it_holds_only_no_data(tmp_path: Path) -> None:
    store = make_levels(tmp_path)
    fill(store, np.full((150, 210), 255, np.uint8))
    objects = sorted(p for p in (store.folder / "values" / "0" / "c").rglob("*") if p.is_file())
    assert objects == sorted(store.shard_object(shard) for shard in store.plan.shards())
    assert len(objects) == 4 and min(p.stat().st_size for p in objects) > 0


def test_unwritten_shards_read_as_no_data(tmp_path: Path) -> None:
    store = make_levels(tmp_path)
    store.write_shard(store.plan.shards()[0], np.zeros((128, 128), np.uint8))
    assert (store.read(Box(0, 0, 128, 128)) == 0).all()
    assert (store.read(Box(0, 128, 150, 210)) == 255).all()


def test_a_torn_shard_is_replaced(tmp_path: Path) -> None:
    store = make_levels(tmp_path)
    shard = store.plan.shards()[0]
    labels = draw(store.plan)[shard.box.slices()]
    path = store.write_shard(shard, labels)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"):
        store.read(shard.box)
    store.write_shard(shard, labels)
    assert path.read_bytes() == whole


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    store = make_levels(tmp_path)
    shard = store.plan.shards()[0]
    labels = draw(store.plan)[shard.box.slices()]
    path = store.write_shard(shard, labels)
    whole = path.read_bytes()
    found = 0
    for position in range(0, len(whole), len(whole) // 20):
        content = bytearray(whole)
        content[position] ^= 0x10
        path.write_bytes(content)
        try:
            assert np.array_equal(store.read(shard.box), labels), "a bit that means nothing may be read over"
        except StoreError as error:
            assert "damaged" in str(error)
            found += 1
    assert found >= 18


def test_deleting_a_shard_takes_the_litter_of_a_killed_writer_with_it(tmp_path: Path) -> None:
    store = make_levels(tmp_path, width=2000)
    ours, neighbour = store.plan.shard_by_id("0.1"), store.plan.shard_by_id("0.10")
    for shard in (ours, neighbour):
        store.write_shard(shard, np.zeros(shard.box.shape, np.uint8))
        store.shard_object(shard).with_suffix(".0123.partial").write_bytes(b"half")
    store.delete_shard(ours)
    left = sorted(p.name for p in store.shard_object(ours).parent.iterdir())
    assert left == ["10", "10.0123.partial"]
    store.write_shard(neighbour, np.zeros(neighbour.box.shape, np.uint8))
    assert [p.name for p in store.shard_object(ours).parent.iterdir()] == ["10"]


def test_missing_metadata_is_an_error_not_an_empty_result(tmp_path: Path) -> None:
    store = make_levels(tmp_path)
    (store.folder / "values" / "0" / "zarr.json").unlink()
    with pytest.raises(StoreError, match="not a readable array"):
        Levels(tmp_path, store.plan, "values").read(Box(0, 0, 1, 1))


def test_level_shapes_end_at_512() -> None:
    plan = make_plan(1025, 4097, halo=16, multiple=16, core=64)
    assert level_shapes(plan) == ((1025, 4097), (513, 2049), (257, 1025), (129, 513), (65, 257))
    assert len(level_shapes(make_plan(512, 512, halo=16, multiple=16, core=64))) == 1


@pytest.mark.parametrize(("core", "chunk"), [(64, 64), (512, 512), (1024, 512), (2048, 512), (1280, 640), (1042, 521)])
def test_chunks_divide_the_core(core: int, chunk: int) -> None:
    assert chunk_side(TilePlan(9, 9, 2, 0, core, core)) == chunk


def test_a_full_disk_is_one_line_and_keeps_what_is_done(small_disk: Callable[[int], Path]) -> None:
    plan = make_plan(1024, 1024, halo=16, multiple=16, core=512)
    store = Levels(small_disk(512), plan, "values")
    store.create_level(0)
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024), dtype=np.uint8)
    written: list[Shard] = []
    with pytest.raises(OutputError, match="No space left on device; free disk space") as caught:
        for shard in plan.shards():
            store.write_shard(shard, noise[shard.box.slices()])
            written.append(shard)
    assert len(written) == 1 and "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert not store.shard_object(plan.shards()[1]).exists()
    assert not list(store.folder.rglob("*.partial")), "it would take the room of what says so"
    assert np.array_equal(store.read(written[0].box), noise[written[0].box.slices()])
