"""Plain TIFF layouts against the arrays that tifffile wrote."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from unetpp.errors import CorruptImageError, ImageFormatError, ImageTooLargeError
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
    for bits in (4, 12):
        few = make.noise((90, 80)) % 2**bits if bits < 8 else make.noise((90, 80), np.uint16) * 16
        tifffile.imwrite(make.folder / "few.tif", few, photometric="miniswhite", bitspersample=bits)
        _reads(make.folder / "few.tif", (2**bits - 1 - few)[..., None])
    tifffile.imwrite(make.folder / "bit.tif", grey > 100, photometric="minisblack")
    _reads(make.folder / "bit.tif", np.where(grey > 100, 255, 0).astype(np.uint8)[..., None])


def test_alpha_nodata_and_unwritten_tiles_are_invalid(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
        # Memory holds what was there before.
        monkeypatch.setattr(tiff.np, "empty", lambda shape, dtype: np.full(shape, 7, dtype))
        window = raster.read(BOXES[0])
        assert np.array_equal(window.valid, hole)
        assert not window.pixels[~hole].any()


@pytest.mark.parametrize(("dtype", "nodata"), [("float32", "-3.4028234663852886e+38"), ("uint8", "-9999")])
def test_a_nodata_value_that_tifffile_cannot_hold_is_no_warning(
    dtype: str, nodata: str, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path, pixels = make.folder / "scene.tif", make.noise((90, 80), np.uint8).astype(dtype)
    tags = [(tiff.GDAL_NODATA, "s", 0, nodata, True)]
    if dtype == "float32":
        pixels[5:9] = np.float32(nodata)
    tifffile.imwrite(path, pixels, extratags=tags)
    caplog.clear()
    with open_raster(path) as raster:
        assert np.array_equal(raster.read(BOXES[0]).valid, pixels >= 0)
    assert not caplog.records


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


def test_an_image_of_several_files_is_refused(make: Any) -> None:
    """Its second channel would be read from where the other file has it."""
    planes, files = make.noise((2, 90, 80)), ("one.ome.tif", "two.ome.tif")
    data = "".join(
        f'<TiffData IFD="0" FirstC="{c}" PlaneCount="1"><UUID FileName="{file}">urn:uuid:0{c}</UUID></TiffData>'
        for c, file in enumerate(files)
    )
    for c, file in enumerate(files):
        text = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0{c}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="80" SizeY="90" SizeC="2" SizeZ="1" '
            'SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/>'
            f"{data}</Pixels></Image></OME>"
        )
        tifffile.imwrite(make.folder / file, planes[c], description=text, metadata=None)
    assert np.array_equal(tifffile.imread(make.folder / files[0]), planes)
    for file in files:
        with pytest.raises(ImageFormatError, match=rf"{file}: planes of it lie in other files or nowhere; save all"):
            open_raster(make.folder / file)
    (make.folder / files[0]).unlink()
    with pytest.raises(ImageFormatError, match=r"two\.ome\.tif: planes of it lie in other files or nowhere"):
        open_raster(make.folder / files[1])


def _write(path: Any, *images: tuple[np.ndarray, dict[str, Any]]) -> Any:
    with tifffile.TiffWriter(path) as file:
        for pixels, options in images:
            file.write(pixels, **options)
    return path


def test_several_images_in_one_file_are_refused_by_name(make: Any) -> None:
    one, two = make.noise((90, 80)), make.noise((90, 80), seed=1)
    wells = [(pixels, {"metadata": {"axes": "YX", "Name": name}}) for pixels, name in ((one, "A1"), (two, "A2"))]
    plain: dict[str, Any] = {"metadata": None}
    for path, names in [
        (_write(make.folder / "wells.ome.tif", *wells), "'A1': 80 x 90, 'A2': 80 x 90"),
        (_write(make.folder / "shaped.tif", (one, {}), (two, {})), "page 1: 80 x 90, page 2: 80 x 90"),
        (
            _write(make.folder / "p.tif", (one, plain), (two.reshape(100, 72), plain)),
            "page 1: 80 x 90, page 2: 72 x 100",
        ),
        (_write(make.folder / "larger.tif", (one[:20], plain), (two, plain)), "page 1: 80 x 20, page 2: 80 x 90"),
    ]:
        with pytest.raises(ImageFormatError, match=rf"holds 2 images \({names}\); save each") as caught:
            open_raster(path)
        assert "\n" not in str(caught.value)


def test_tiled_rgb_images_of_one_file_are_refused_when_opened(make: Any) -> None:
    """OpenSlide opens the first such page as a slide and passes over the others."""
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    path = make.folder / "two.tif"
    with pytest.raises(ImageFormatError, match=r"holds 2 images \(page 1: 128 x 128, page 2: 150 x 90\)"):
        open_raster(_write(path, (make.noise((128, 128, 3)), options), (make.noise((90, 150, 3)), options)))


def test_pyramids_labels_and_masks_beside_an_image_are_no_further_images(make: Any) -> None:
    top, low, wide = make.noise((90, 80)), make.noise((45, 40)), make.noise((30, 100))
    plain: dict[str, Any] = {"metadata": None}
    named: dict[str, Any] = {"metadata": {"axes": "YX", "Name": "slide"}}
    reduced: dict[str, Any] = {"metadata": None, "subfiletype": 1}
    for path, levels in [
        (_write(make.folder / "pages.tif", (top, plain), (low, plain)), 2),
        (_write(make.folder / "subifds.ome.tif", (top, named | {"subifds": 1}), (low, reduced)), 2),
        (_write(make.folder / "bioformats.ome.tif", (top, named), (low, named)), 1),
        (_write(make.folder / "label.ome.tif", (top, named), (wide, {"metadata": {"axes": "YX", "Name": "label"}})), 1),
        (_write(make.folder / "macro.tif", (top, plain), (make.noise((80, 100)), reduced)), 1),
        (_write(make.folder / "mask.tif", (top, plain), (top > 100, plain)), 1),
    ]:
        with open_raster(path) as raster:
            assert len(raster.levels) == levels
            assert np.array_equal(raster.read(Box(0, 0, 90, 80)).pixels[..., 0], top)


@pytest.mark.parametrize("color", ["cielab", "icclab", "itulab", "ycbcr"])
def test_samples_that_are_no_channels_are_refused(make: Any, color: str) -> None:
    path = make.folder / "color.tif"
    tifffile.imwrite(path, make.noise((90, 80, 3)), photometric=color, compression="zlib")
    with pytest.raises(ImageFormatError, match=rf"color\.tif: stores colours as {color.upper()}; convert") as caught:
        open_raster(path)
    assert "\n" not in str(caught.value)


def test_only_rgb_is_called_red_green_and_blue(make: Any) -> None:
    pixels = make.noise((90, 80, 3))
    for color, compression, bands in [
        ("rgb", None, ("red", "green", "blue")),
        ("ycbcr", "jpeg", ("red", "green", "blue")),
        ("linear_raw", None, ("band1", "band2", "band3")),
    ]:
        path = make.folder / f"{color}.tif"
        tifffile.imwrite(path, pixels, photometric=color, compression=compression)
        with open_raster(path) as raster:
            assert raster.bands == bands
            assert np.array_equal(raster.read(BOXES[0]).pixels, tifffile.imread(path))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of every segment that decodes."""
    found: list[int] = []
    decode = tiff.TiffPages._decode
    monkeypatch.setattr(
        tiff.TiffPages, "_decode", lambda self, segment: (found.append(segment.key[2]), decode(self, segment))[1]
    )
    return found


def test_one_strip_decodes_once_for_many_windows(make: Any, decoded: list[int]) -> None:
    path = make.folder / "strip.tif"
    grey = make.noise((90, 80))
    tifffile.imwrite(path, grey, rowsperstrip=90, compression="zlib")
    with TiffRaster(path) as raster:
        for row in range(0, 90, 10):
            assert np.array_equal(raster.read(Box(row, 0, row + 10, 80)).pixels[..., 0], grey[row : row + 10])
    assert decoded == [0]


def test_tiles_between_columns_of_windows_decode_once(
    make: Any, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    """As a worker reads: downwards, then to the right, with room for the tiles that two windows share."""
    monkeypatch.setattr(tiff, "SEGMENT_CACHE_BYTES", 12 * 16 * 16)
    path = make.folder / "tiles.tif"
    grey = make.noise((128, 128))
    tifffile.imwrite(path, grey, tile=(16, 16))
    with TiffRaster(path) as raster:
        for x in (0, 40, 80):
            for y in (0, 40, 80):
                box = Box(y, x, y + 40, x + 40)
                assert np.array_equal(raster.read(box).pixels[..., 0], grey[box.slices()])
                assert raster._pages._cached == sum(block.nbytes for block in raster._pages._cache.values())
    assert sorted(decoded) == [row * 8 + column for row in range(8) for column in range(8)]


def test_tiles_below_a_window_are_kept_however_large_they_are(
    make: Any, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    monkeypatch.setattr(tiff, "SEGMENT_CACHE_BYTES", 1)
    path = make.folder / "tiles.tif"
    grey = make.noise((96, 48)).astype(np.uint16)
    tifffile.imwrite(path, grey, tile=(16, 16))
    with TiffRaster(path) as raster:
        for y in range(0, 96, 24):
            assert np.array_equal(raster.read(Box(y, 0, y + 24, 48)).pixels[..., 0], grey[y : y + 24])
    assert sorted(decoded) == list(range(18))


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


def test_a_tile_that_holds_a_larger_jpeg_is_refused(make: Any) -> None:
    path = make.folder / "bomb.tif"
    small, large = make.noise((16, 16, 3)), np.zeros((2000, 2000, 3), np.uint8)
    bomb = imagecodecs.jpeg8_encode(large)
    tifffile.imwrite(
        path, iter([bomb]), shape=small.shape, dtype=np.uint8, tile=(16, 16), photometric="ycbcr", compression="jpeg"
    )
    with (
        TiffRaster(path) as raster,
        pytest.raises(CorruptImageError, match="2000 x 2000 pixels, where at most 16 x 16"),
    ):
        raster.read(Box(0, 0, 16, 16))
