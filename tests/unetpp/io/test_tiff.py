"""Plain TIFF layouts against the arrays that tifffile wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tifffile

from unetpp.errors import ImageFormatError, ImageTooLargeError
from unetpp.geometry import Box, Spacing
from unetpp.io import open_raster, tiff
from unetpp.io.plain import TiffRaster

BOXES = [Box(0, 0, 90, 80), Box(31, 30, 34, 65), Box(89, 79, 90, 80)]


def _reads(path: Any, truth: np.ndarray) -> None:
    with open_raster(path) as raster:
        assert raster.dtype == truth.dtype
        for box in BOXES:
            assert np.array_equal(raster.read(box).pixels, truth[box.slices()])


@pytest.mark.parametrize(
    "layout",
    [
        {"tile": (32, 32), "metadata": {"axes": "CYX"}},
        {"rowsperstrip": 7, "compression": "zlib", "metadata": {"axes": "CYX"}},
        {"planarconfig": "separate", "rowsperstrip": 7, "compression": "lzw"},
        {"planarconfig": "separate", "tile": (32, 48)},
        {"imagej": True, "metadata": {"axes": "CYX"}},
    ],
    ids="-".join,
)
def test_channels_in_planes_and_pages(make: Any, layout: dict[str, Any]) -> None:
    planes = make.noise((5, 90, 80), np.uint16)
    path = make.folder / ("image.ome.tif" if "CYX" in str(layout) and "imagej" not in layout else "image.tif")
    tifffile.imwrite(path, planes, photometric="minisblack", **layout)
    _reads(path, np.moveaxis(planes, 0, -1))


def test_palette_white_is_zero_and_one_bit(make: Any) -> None:
    grey = make.noise((90, 80))
    colors = np.random.default_rng(2).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(make.folder / "palette.tif", grey, photometric="palette", colormap=colors)
    _reads(make.folder / "palette.tif", np.moveaxis((colors >> 8).astype(np.uint8)[:, grey], 0, -1))
    tifffile.imwrite(make.folder / "white.tif", grey, photometric="miniswhite")
    _reads(make.folder / "white.tif", (255 - grey)[..., None])
    tifffile.imwrite(make.folder / "bit.tif", grey > 100, photometric="minisblack")
    _reads(make.folder / "bit.tif", np.where(grey > 100, 255, 0).astype(np.uint8)[..., None])


def test_alpha_nodata_and_unwritten_tiles_are_invalid(make: Any) -> None:
    rgba = make.noise((90, 80, 4))
    rgba[20:40, 10:30, 3] = 0
    tifffile.imwrite(make.folder / "alpha.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    with open_raster(make.folder / "alpha.tif") as raster:
        window = raster.read(BOXES[0])
        assert np.array_equal(window.pixels, rgba[..., :3])
        assert np.array_equal(window.valid, rgba[..., 3] > 0)

    height = make.noise((90, 80), np.int16)
    height[5:9] = -9999
    nodata = [(tiff.GDAL_NODATA, "s", 0, "-9999", True)]
    tifffile.imwrite(make.folder / "nodata.tif", height, extratags=nodata)
    with open_raster(make.folder / "nodata.tif") as raster:
        assert np.array_equal(raster.read(BOXES[0]).valid, height != -9999)

    path = make.folder / "sparse.tif"
    tifffile.imwrite(
        path, make.noise((90, 80, 2), np.uint16), tile=(32, 32), photometric="minisblack", planarconfig="contig"
    )
    _forget_tile(path, 4)
    with open_raster(path) as raster:
        hole = np.ones((90, 80), bool)
        hole[32:64, 32:64] = False
        assert np.array_equal(raster.read(BOXES[0]).valid, hole)


def _forget_tile(path: Any, index: int) -> None:
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = file.pages.first.tags[name]
            tag.overwrite(tuple(0 if i == index else value for i, value in enumerate(tag.value)))


def test_imagej_unit_and_resolution_make_the_spacing(make: Any) -> None:
    for unit, expected in [("micron", Spacing(0.5, 0.25, "um")), ("nm", Spacing(5e-4, 2.5e-4, "um")), ("pixel", None)]:
        path = make.folder / f"{unit}.tif"
        tifffile.imwrite(path, make.noise((90, 80)), imagej=True, metadata={"unit": unit}, resolution=(4, 2))
        with open_raster(path) as raster:
            assert raster.spacing == expected


def test_stack_over_depth_is_refused(make: Any) -> None:
    for axes in ("ZYX", "TCYX"):
        shape = (4, 90, 80) if axes == "ZYX" else (2, 4, 90, 80)
        tifffile.imwrite(make.folder / "stack.ome.tif", make.noise(shape), metadata={"axes": axes})
        with pytest.raises(ImageFormatError, match=r"stack.*axes"):
            open_raster(make.folder / "stack.ome.tif")


def test_one_strip_decodes_once_for_many_windows(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make.folder / "strip.tif"
    grey = make.noise((90, 80))
    tifffile.imwrite(path, grey, rowsperstrip=90, compression="zlib")
    decoded: list[int] = []
    decode = tiff.TiffPages._decode
    monkeypatch.setattr(
        tiff.TiffPages, "_decode", lambda self, segment: (decoded.append(segment.key[2]), decode(self, segment))[1]
    )
    with TiffRaster(path) as raster:
        for row in range(0, 90, 10):
            assert np.array_equal(raster.read(Box(row, 0, row + 10, 80)).pixels[..., 0], grey[row : row + 10])
    assert decoded == [0]


def test_segment_cache_is_bounded(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "SEGMENT_CACHE_BYTES", 5000)
    path = make.folder / "tiles.tif"
    grey = make.noise((300, 200))
    tifffile.imwrite(path, grey, tile=(32, 32))
    with TiffRaster(path) as raster:
        assert np.array_equal(raster.read(Box(0, 0, 300, 200)).pixels[..., 0], grey)
        assert sum(block.nbytes for block in raster._pages._cache.values()) <= 5000


def test_strip_that_must_decode_whole_is_refused_when_huge(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "MAX_DECODED_PIXELS", 5000)
    tifffile.imwrite(make.folder / "huge.tif", make.noise((90, 80)), rowsperstrip=90, compression="zlib")
    with pytest.raises(ImageTooLargeError, match="7200 pixels, more than 5000"):
        open_raster(make.folder / "huge.tif")
