"""Which reader opens what, what the errors say, and when the fingerprint changes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from unetpp.errors import CorruptImageError, ImageFormatError, ImageNotFoundError, PlanError
from unetpp.geometry import Box, Spacing
from unetpp.io import Raster, open_raster, tiff
from unetpp.io.base import fingerprint


def test_content_chooses_the_reader(make: Any) -> None:
    rgb, grey = make.noise((70, 70, 3)), make.noise((70, 70))
    Image.fromarray(rgb).save(make.folder / "misnamed.tif", "PNG")
    wanted = {
        make.geotiff(rgb): ("scene", "geotiff"),
        make.pyramid([rgb], "rgb.tif"): ("slide", "openslide/generic-tiff"),
        make.pyramid([grey], "grey.tif"): ("image", "tiff"),
        make.folder / "misnamed.tif": ("image", "png"),
    }
    for path, (kind, name) in wanted.items():
        with open_raster(path) as raster:
            assert isinstance(raster, Raster)
            assert (raster.kind, raster.format, raster.uri) == (kind, name, str(path))
        with open_raster(f"file://{path}") as raster:
            assert raster.kind == kind


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_a_mask_counts_without_a_place(make: Any, inside: bool, tiled: bool) -> None:
    """The mask is GDAL's own, in the file or beside it, with masks of the overviews."""
    mask = np.zeros((150, 200), bool)
    mask[20:120, 10:77] = True
    path = make.folder / "masked.tif"
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64} if tiled else {}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside),
        rasterio.open(path, "w", "GTiff", 200, 150, 3, dtype="uint8", **layout) as file,
    ):
        file.write(np.moveaxis(make.noise((150, 200, 3)), -1, 0))
        file.write_mask(mask)
        file.build_overviews([2])
    with warnings.catch_warnings(action="error"):
        raster = open_raster(path)
    with raster:
        assert raster.kind == "image" and len(raster.levels) == 2
        for level, options in enumerate(({}, {"overview_level": 0})):
            window = raster.read(raster.levels[level].box, level)
            with rasterio.open(path, **options) as file:
                np.testing.assert_array_equal(np.moveaxis(window.pixels, -1, 0), file.read())
                np.testing.assert_array_equal(window.valid, file.dataset_mask() > 0)


def test_nodata_of_a_tiled_rgb_tiff_counts_without_a_place(make: Any) -> None:
    pixels = make.noise((90, 80, 3))
    pixels[:20] = 0
    with rasterio.open(
        make.folder / "nodata.tif", "w", "GTiff", 80, 90, 3, dtype="uint8", nodata=0, tiled=True, blockxsize=64,
        blockysize=64,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, -1, 0))
    with open_raster(make.folder / "nodata.tif") as raster:
        window = raster.read(Box(0, 0, 90, 80))
        np.testing.assert_array_equal(window.pixels, pixels)
        np.testing.assert_array_equal(window.valid, pixels.any(axis=-1))


def test_a_place_beside_the_file_counts(make: Any) -> None:
    """GDAL's profile "baseline" writes no tag that is not in the TIFF standard."""
    path = make.geotiff(make.noise((70, 70, 3)), profile="BASELINE")
    assert not (tiff.GEO_TAGS & tiff.read_header(path).tags.keys())
    with open_raster(path) as raster, rasterio.open(path) as file:
        assert raster.kind == "scene" and raster.transform == tuple(file.transform)[:6]
        assert rasterio.crs.CRS.from_wkt(raster.crs) == file.crs


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("name", "beside"),
    [
        *[("a.tif", "a.tfw"), ("A.TIF", "A.TFW"), ("a.jpg", "a.jgw"), ("A.JPG", "A.JGW"), ("a.jpeg", "a.jpegw")],
        *[("a.png", "a.wld"), ("a.bmp", "a.bpw"), ("a.webp", "a.webp.aux.xml"), ("a.jpg", "a.jpg.aux.xml")],
    ],
)
def test_a_world_file_places_what_it_lies_beside(make: Any, name: str, beside: str) -> None:
    pixels = make.noise((20, 30, 3))
    Image.fromarray(pixels).save(make.folder / name)
    crs = rasterio.crs.CRS.from_epsg(32636)
    grid = "<GeoTransform>4.5e5, 0.4, 0.3, 4e6, 0.3, -0.4</GeoTransform>"
    text = f"<PAMDataset><SRS>{crs.to_wkt()}</SRS>{grid}</PAMDataset>" if "xml" in beside else "0.5\n0\n0\n-0.5\n9\n7\n"
    (make.folder / beside).write_text(text)
    with open_raster(make.folder / name) as raster, rasterio.open(make.folder / name) as file:
        assert not file.transform.is_identity and raster.transform == tuple(file.transform)[:6]
        assert (raster.kind, raster.crs is None) == (("scene", False) if "xml" in beside else ("image", True))
        assert raster.spacing == (Spacing(0.5, 0.5, "m") if "xml" in beside else None)
        if "jp" not in name.lower():
            np.testing.assert_array_equal(raster.read(raster.levels[0].box).pixels, file.read().transpose(1, 2, 0))


@pytest.mark.parametrize("compression", ["jpeg2000", "webp", "jpegxl", "lzma", "lerc"])
def test_a_tiled_rgb_tiff_of_a_compression_that_openslide_lacks_is_read(make: Any, compression: str) -> None:
    path = make.folder / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        for level in (make.noise((200, 260, 3)), make.noise((100, 130, 3))):
            kind = int(level.shape[0] == 100)
            file.write(
                level, tile=(64, 64), compression=compression, photometric="rgb", subfiletype=kind, metadata=None
            )
    with open_raster(path) as raster, tifffile.TiffFile(path) as file:
        for level, page in enumerate(file.pages):
            np.testing.assert_array_equal(raster.read(raster.levels[level].box, level).pixels, page.asarray())


def test_a_file_uri_is_unquoted_and_a_path_is_not(make: Any) -> None:
    """The URIs are pathlib's own."""
    pixels = make.noise((9, 9, 3))
    for name in ("a slide.png", "50%.png", "a%20b.png", "größe #1.png"):
        path = make.folder / name
        Image.fromarray(pixels).save(path)
        for uri in (path.as_uri(), str(path), path):
            with open_raster(uri) as raster:
                assert raster.uri == str(path)
                np.testing.assert_array_equal(raster.read(Box(0, 0, 9, 9)).pixels, pixels)


def test_a_mosaic_and_a_band_list_that_name_each_other_are_refused(make: Any) -> None:
    mosaic, bands = make.folder / "a.mosaic.toml", make.folder / "b.bands.toml"
    mosaic.write_text('rule = "first"\nparts = [{ uri = "b.bands.toml" }]')
    bands.write_text('bands = [{ uri = "a.mosaic.toml" }]')
    for path, other in ((mosaic, bands), (bands, mosaic)):
        with pytest.raises(ImageFormatError, match=rf"{path.name}: names itself, by way of {other.name}") as caught:
            open_raster(path)
        assert "\n" not in str(caught.value)
    make.geotiff(make.noise((9, 9, 1)))
    bands.write_text('bands = [{ uri = "scene.tif" }]')
    with open_raster(mosaic) as raster:
        assert raster.levels[0].box == Box(0, 0, 9, 9)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("gone.tif", None, ImageNotFoundError),
        ("text.txt", b"hello, this is no image", ImageFormatError),
        ("photo.mrxs", b"\xff\xd8\xff\xe0 a photo", ImageFormatError),
        ("empty.tif", b"", CorruptImageError),
        ("stub.tif", b"II*\0\x08\0\0\0", CorruptImageError),
        ("stub.png", b"\x89PNG\r\n\x1a\n\0\0", CorruptImageError),
    ],
)
def test_errors_are_one_line_and_name_the_file(
    tmp_path: Path, name: str, content: bytes | None, kind: type[Exception]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind) as caught:
        open_raster(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_folders_and_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageFormatError, match="without Zarr metadata"):
        open_raster(tmp_path)
    with pytest.raises(
        ImageFormatError, match=r"ftp://example\.org/a\.tif: cannot be read; give a path, or a URI of s3"
    ):
        open_raster("ftp://example.org/a.tif")
    for uri in ("https://me:pass@example.org/a.tif", "https://example.org/a.tif?token=pass"):
        with pytest.raises(ImageFormatError, match=r"https://example\.org/a\.tif: given with a password") as caught:
            open_raster(uri)
        assert "pass@" not in str(caught.value) and "token" not in str(caught.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageFormatError, match=r"a\.png: a pipe, socket or device; give a file or folder"):
        open_raster(tmp_path / "a.png")


def test_empty_boxes_and_unknown_levels_are_refused(make: Any) -> None:
    with open_raster(make.geotiff(make.noise((9, 9, 1)))) as raster:
        with pytest.raises(PlanError, match="is empty"):
            raster.read(Box(3, 3, 3, 5))
        for level in (-1, 1):
            with pytest.raises(PlanError, match="does not exist"):
                raster.read(Box(0, 0, 1, 1), level)


def test_fingerprint_follows_content_and_time(make: Any) -> None:
    pixels = make.noise((60, 60, 3))
    path = make.geotiff(pixels)
    stat = path.stat()
    first = fingerprint(path)
    assert fingerprint(path) == first
    with open_raster(path) as raster:
        assert fingerprint(raster) == first
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert fingerprint(path) != first
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(path) == first
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and fingerprint(path) != first


def test_writing_into_a_window_leaves_the_image_alone(make: Any) -> None:
    path = make.folder / "a.png"
    Image.fromarray(make.noise((9, 9, 3))).save(path)
    with open_raster(path) as raster:
        window = raster.read(Box(0, 0, 9, 9))
        before = window.pixels.copy()
        window.pixels[:] = 0
        np.testing.assert_array_equal(raster.read(Box(0, 0, 9, 9)).pixels, before)
