"""Which reader opens what, what the errors say, and when the fingerprint changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetpp.errors import CorruptImageError, ImageFormatError, ImageNotFoundError, PlanError
from unetpp.geometry import Box
from unetpp.io import Raster, open_raster
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
