"""Thumbnails against a direct mean, and what a fingerprint notices in files beside the image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unetpp.errors import PlanError
from unetpp.geometry import Box
from unetpp.io import base, open_raster
from unetpp.io.base import Window, fingerprint, other_files, thumbnail
from unetpp.io.reader import RGB, ReaderBase, level_scale, make_levels, valid_samples


class Memory(ReaderBase):
    """Levels held as arrays; remembers the largest box that was read."""

    kind, format, uri, bands = "image", "memory", "memory", RGB

    def __init__(self, *levels: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.arrays, self.valid, self.largest, self.read_levels = levels, valid, 0, set[int]()
        self.dtype = levels[0].dtype
        self.levels = make_levels([level.shape[:2] for level in levels])

    def _read_inside(self, box: Box, level: int) -> tuple[Any, Any]:
        self.largest = max(self.largest, box.area)
        self.read_levels.add(level)
        return self.arrays[level][box.slices()], None if self.valid is None else self.valid[box.slices()]


def _mean(image: np.ndarray, valid: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    out, ok = np.zeros((height, width, image.shape[2])), np.zeros((height, width), bool)
    for i in range(height):
        for j in range(width):
            part = np.s_[
                i * image.shape[0] // height : (i + 1) * image.shape[0] // height,
                j * image.shape[1] // width : (j + 1) * image.shape[1] // width,
            ]
            ok[i, j] = valid[part].any()
            if ok[i, j]:
                out[i, j] = image[part][valid[part]].mean(0)
    return out, ok


@pytest.mark.parametrize("block", [16, 50, 2048])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_thumbnail_is_the_mean_of_valid_pixels(
    make: Any, monkeypatch: pytest.MonkeyPatch, block: int, dtype: Any
) -> None:
    monkeypatch.setattr(base, "THUMBNAIL_BLOCK", block)
    image = make.noise((157, 211, 3), dtype)
    valid = make.noise((157, 211), seed=9) > 120
    valid[:40, :50] = False
    raster = Memory(image, valid=valid)
    small = thumbnail(raster, 37)
    assert small.pixels.shape == (28, 37, 3) and small.pixels.dtype == dtype
    mean, ok = _mean(image, valid, 28, 37)
    assert np.array_equal(small.valid, ok)
    assert np.abs(small.pixels - mean).max() <= (0.5 if dtype != np.float32 else 1e-4)
    assert raster.largest <= (block + 8) ** 2, "never much more than one block at a time"


def test_thumbnail_reads_the_coarsest_level_that_is_large_enough(make: Any) -> None:
    levels = [make.noise((n, n, 3)) for n in (400, 200, 100, 50)]
    for side, level in [(300, 0), (200, 1), (150, 1), (100, 2), (20, 3), (1000, 0)]:
        raster = Memory(*levels)
        small: Window = thumbnail(raster, side)
        assert raster.read_levels == {level} and small.level == level
        assert max(small.pixels.shape) == min(side, 400)
    with pytest.raises(PlanError, match="thumbnail side 0"):
        thumbnail(raster, 0)


def test_level_scale_is_the_integer_that_explains_both_sizes() -> None:
    slide = make_levels([(3567, 4443), (1783, 2221), (892, 1111), (500, 600)])
    assert [level_scale(slide, i) for i in range(3)] == [(1, 1), (2, 2), (4, 4)]
    assert level_scale(slide, 3) == (3567 / 500, 4443 / 600)


def test_nodata_of_single_bands() -> None:
    """8-bit: all bands must be nodata. Wider: one band is enough, each against its own value."""
    bytes_ = np.array([[[0, 0], [0, 5], [5, 5]]], np.uint8)
    assert valid_samples(bytes_, [0, 0]).tolist() == [[False, True, True]]  # type: ignore[union-attr]
    assert valid_samples(bytes_, [0, None]) is None
    wide = np.array([[[-1, 7], [3, -2], [-2, -1], [3, 7]]], np.int16)
    assert valid_samples(wide, [-1, -2]).tolist() == [[False, False, True, True]]  # type: ignore[union-attr]
    assert valid_samples(wide, [None, 1e9]).all()  # type: ignore[union-attr]
    lowest = np.array([[[np.finfo(np.float32).min, 1], [np.nan, 1], [1, np.inf], [1, 2]]], np.float32)
    assert valid_samples(lowest, [-3.4028234663852886e38, None]).tolist() == [[False, False, False, True]]  # type: ignore[union-attr]


def _touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def test_fingerprint_of_a_zarr_folder(tmp_path: Path) -> None:
    path = tmp_path / "image.zarr"
    group = zarr.open_group(path, mode="w")
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    scale = [{"type": "scale", "scale": [0.5, 0.5]}]
    multiscale = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    group.create_array("0", shape=(40, 40), chunks=(20, 20), dtype="uint8", compressors=None)[:] = 7
    first = fingerprint(path)
    assert fingerprint(path) == first == fingerprint(open_raster(path))

    chunk = path / "0" / "c" / "0" / "1"
    chunk.write_bytes(b"\x05" * 400)
    _touch(chunk)
    second = fingerprint(path)
    assert second != first, "a chunk of the same size changed"
    scale[0]["scale"] = [0.25, 0.5]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    third = fingerprint(path)
    assert third not in (first, second), "the metadata changed"
    group.attrs["note"] = "what no reader understands"
    fourth = fingerprint(path)
    assert fourth not in (first, second, third)
    chunk.unlink()
    assert fingerprint(path) not in (first, second, third, fourth), "a chunk is gone"

    row = path / "0" / "c" / "9"
    row.mkdir()
    for number in range(5000):
        (row / str(number)).touch()
    many = fingerprint(path)
    _touch(row / "999")  # the last in order
    assert fingerprint(path) != many, "the last of many chunks changed"
    assert row / "999" in other_files(path)


@pytest.mark.parametrize("length", [248, 255])
def test_a_name_that_leaves_no_room_for_what_gdal_puts_beside_it_opens(make: Any, length: int) -> None:
    path = make.pyramid([make.noise((70, 70, 3))])
    longest = path.rename(path.with_name("x" * (length - 4) + ".tif"))
    with open_raster(longest) as raster:
        assert raster.levels[0].height == 70
    assert len(fingerprint(longest)) == 64


@pytest.mark.parametrize("ending", [".ovr", ".msk", ".aux.xml"])
def test_fingerprint_follows_the_files_beside_a_scene(make: Any, ending: str) -> None:
    path = make.geotiff(make.noise((70, 70, 3)))
    before = fingerprint(path)
    beside = path.with_name(path.name + ending)
    beside.write_bytes(b"<PAMDataset></PAMDataset>" if ending == ".aux.xml" else path.read_bytes())
    after = fingerprint(path)
    assert after != before
    _touch(beside)
    assert fingerprint(path) not in (before, after)
