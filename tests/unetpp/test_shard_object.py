"""The bytes of a shard, against what Zarr writes and reads."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from unetpp.shard_object import LEVEL, encode, join, read_chunk, read_index

SIDE = 16


def object_of_zarr(path: Path, values: np.ndarray, counts: tuple[int, ...]) -> bytes:
    shard = (*counts[:-2], counts[-2] * SIDE, counts[-1] * SIDE)
    array = zarr.create_array(
        path,
        shape=values.shape,
        dtype="uint8",
        chunks=(*(1 for _ in counts[:-2]), SIDE, SIDE),
        shards=shard,
        fill_value=9,
        compressors=ZstdCodec(level=LEVEL, checksum=True),
    ).with_config({"write_empty_chunks": True})
    array[...] = values
    return Path(path, "c", *("0" for _ in counts)).read_bytes()


@pytest.mark.parametrize("counts", [(1, 1), (4, 4), (3, 3), (5, 2), (1, 7), (3, 4, 4), (2, 3, 5), (1, 6, 6)])
@pytest.mark.parametrize("cut", [0, 5])
def test_the_bytes_are_those_of_zarr(tmp_path: Path, counts: tuple[int, ...], cut: int) -> None:
    shape = (*counts[:-2], counts[-2] * SIDE - cut, counts[-1] * SIDE - cut)
    values = np.random.default_rng(len(counts)).integers(0, 4, shape, dtype=np.uint8)
    chunks = dict(encode(values, SIDE, 9))
    assert len(chunks) == np.prod(counts)
    content = join(chunks, counts)
    assert content == object_of_zarr(tmp_path / "zarr", values, counts)
    file = BytesIO(content)
    index = read_index(file, counts)
    for place in np.ndindex(counts):
        found = read_chunk(file, index, place, SIDE)
        (*plane, y, x) = place
        inside = values[(*plane, slice(y * SIDE, (y + 1) * SIDE), slice(x * SIDE, (x + 1) * SIDE))]
        assert found is not None and np.array_equal(found[: inside.shape[0], : inside.shape[1]], inside)
        assert (found[inside.shape[0] :] == 9).all() and (found[:, inside.shape[1] :] == 9).all()


def test_a_chunk_that_is_not_there_is_none_for_zarr_too(tmp_path: Path) -> None:
    values = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)
    object_of_zarr(tmp_path / "zarr", values, (3, 3))
    chunks = dict(encode(values, SIDE, 9))
    del chunks[1, 2]
    path = tmp_path / "zarr" / "c" / "0" / "0"
    path.write_bytes(join(chunks, (3, 3)))
    values[16:32, 32:] = 9
    assert np.array_equal(zarr.open_array(tmp_path / "zarr", mode="r")[...], values)
    with path.open("rb") as file:
        assert read_chunk(file, read_index(file, (3, 3)), (1, 2), SIDE) is None


@pytest.mark.parametrize("size", [0, 3, 19, 40])
def test_an_object_that_is_too_short_is_damaged(size: int) -> None:
    content = join(dict(encode(np.zeros((SIDE, SIDE), np.uint8), SIDE, 9)), (1, 1))
    with pytest.raises(ValueError, match=r"no index|checksum"):
        read_index(BytesIO(content[:size]), (1, 1))


def test_a_chunk_of_another_size_is_damaged() -> None:
    content = BytesIO(join(dict(encode(np.zeros((SIDE, SIDE), np.uint8), SIDE, 9)), (1, 1)))
    with pytest.raises(ValueError, match="reshape"):
        read_chunk(content, read_index(content, (1, 1)), (0, 0), 2 * SIDE)
