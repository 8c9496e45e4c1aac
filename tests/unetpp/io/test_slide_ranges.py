"""Remote slides in ranges: pixels, levels, spacing of the local file, few bytes, copies where OpenSlide is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.object_store import ObjectStore
from unetpp.errors import CorruptImageError, RemoteError
from unetpp.geometry import Box
from unetpp.io import jpeg, open_raster
from unetpp.io.base import fingerprint, thumbnail
from unetpp.io.remote import BLOCK_BYTES
from unetpp.io.slide_ranges import SlideInRanges

SLIDES = ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", "giardia_HE_left_1.02GP.tif"]
TRESTLE = {"software": "MedScan 1.0", "description": "Objective Magnification=20;OverlapsXY=0 0"}


def _pyramid(path: Path, side: int = 1500, levels: int = 3, **options: object) -> Path:
    """A JPEG pyramid of blobs; options are of every level."""
    rows, columns = np.mgrid[:side, :side]
    planes = [np.sin(rows / f) * np.cos(columns / (f + 4)) * 100 + 128 for f in (17.0, 23.0, 31.0)]
    pixels = np.stack(planes, -1).astype(np.uint8)
    known = {"tile": (240, 256), "compression": "jpeg", "photometric": "ycbcr", "metadata": None, **options}
    with tifffile.TiffWriter(path) as file:
        for index in range(levels):
            extra = {"subfiletype": 1} if index else {}
            file.write(np.ascontiguousarray(pixels[:: 2**index, :: 2**index]), **known, **extra)
    return path


def _asked(store: ObjectStore) -> int:
    """Return the bytes of all ranges asked for since the proxy was told how to behave."""
    ranges = [request[2].removeprefix("bytes=").split("-") for request in store.proxy.requests if request[2]]
    return sum(int(stop) - int(start) + 1 for start, stop in ranges)


@pytest.mark.parametrize("name", SLIDES)
def test_real_slides_equal_the_local_file(
    data_dir: Path, boxes: Callable[..., list[Box]], object_store: ObjectStore, name: str
) -> None:
    path = data_dir / "slides" / name
    uri = object_store.put(path, name)
    object_store.proxy.misbehave("error", "cut", "short")
    with open_raster(path) as local, open_raster(uri) as raster:
        assert isinstance(raster, SlideInRanges)
        for attribute in ("kind", "format", "levels", "bands", "dtype", "spacing", "crs", "transform"):
            assert getattr(raster, attribute) == getattr(local, attribute), attribute
        for level in range(len(local.levels)):
            for box in boxes(local, level, count=3):
                ours, truth = raster.read(box, level), local.read(box, level)
                np.testing.assert_array_equal(ours.pixels, truth.pixels)
                np.testing.assert_array_equal(ours.valid, truth.valid)
        assert fingerprint(raster) == fingerprint(uri)
    assert object_store.proxy.seen["error"], "the network was as bad as it should be"


def test_a_look_at_a_large_slide_is_a_few_percent_of_it(data_dir: Path, object_store: ObjectStore) -> None:
    path = data_dir / "slides" / SLIDES[2]
    uri = object_store.put(path, "large.tif")
    object_store.proxy.misbehave()
    with open_raster(uri) as raster:
        assert raster.read(Box(15_000, 15_000, 15_512, 15_512)).valid.all()
        assert thumbnail(raster, 512).pixels.shape[:2] == (486, 512)
    assert 0 < _asked(object_store) < path.stat().st_size / 20


def test_what_openslide_reads_in_another_way_is_copied(
    tmp_path: Path, boxes: Callable[..., list[Box]], object_store: ObjectStore
) -> None:
    """A tile that was never written, and the other TIFFs that OpenSlide knows by their maker."""
    whole, gap = _pyramid(tmp_path / "whole.tif"), _pyramid(tmp_path / "gap.tif")
    with tifffile.TiffFile(gap, mode="r+b") as file:
        for tag in ("TileOffsets", "TileByteCounts"):
            values = list(file.pages[0].tags[tag].value)
            file.pages[0].tags[tag].overwrite([*values[:9], 0, *values[10:]])
    other = _pyramid(tmp_path / "other.tif", levels=1, **TRESTLE)
    with open_raster(other) as local:
        assert local.format == "openslide/trestle"
    for path in (whole, gap, other):
        with open_raster(path) as local, open_raster(object_store.put(path, path.name)) as raster:
            assert isinstance(raster, SlideInRanges) == (path == whole), path.name
            assert (raster.format, raster.levels) == (local.format, local.levels)
            for box in boxes(local, count=3):
                np.testing.assert_array_equal(raster.read(box).pixels, local.read(box).pixels)


def test_tiles_that_are_not_openslides_pixels_are_not_read(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = object_store.put(_pyramid(tmp_path / "slide.tif"), "slide.tif")
    decode = jpeg.decode
    monkeypatch.setattr(jpeg, "decode", lambda *arguments: decode(*arguments) ^ 1)
    with open_raster(uri) as raster:
        assert not isinstance(raster, SlideInRanges)


def test_a_tile_that_never_comes_or_is_damaged_is_an_error(tmp_path: Path, object_store: ObjectStore) -> None:
    path = _pyramid(tmp_path / "slide.tif", 4000, levels=1)
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[start + size // 2 : start + size] = bytes(size - size // 2)
    path.write_bytes(data)
    with open_raster(object_store.put(path, "slide.tif")) as raster:
        assert isinstance(raster, SlideInRanges)
        with pytest.raises(CorruptImageError, match="tile 0 of level 0"):
            raster.read(Box(0, 0, 99, 99))
        raster.read(Box(600, 600, 700, 700))
        assert path.stat().st_size > 10 * BLOCK_BYTES, "else all of it has come already"
        object_store.proxy.misbehave("cut", "error", times=99)
        with pytest.raises(RemoteError, match="no complete answer"):
            # Of one tile: those of others would be asked for again while the next test counts requests.
            raster.read(Box(3130, 3090, 3200, 3200))
