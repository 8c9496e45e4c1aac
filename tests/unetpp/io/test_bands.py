"""Band lists: bands by name and number of several files and STAC assets, scaled by hand-computed values; VRTs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from unetpp.errors import BandsError, CorruptImageError, ImageFormatError
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.io.base import fingerprint


def _list(folder: Path, text: str, name: str = "scene.bands.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.proves("bands of several files (.bands.toml)")
def test_bands_of_several_files_scaled_and_named(make: Any) -> None:
    one, four = make.noise((70, 90, 1), np.uint16), make.noise((70, 90, 4), np.uint16, seed=1)
    one[3, 4] = 9999
    make.geotiff(one, "one.tif", nodata=9999, overviews=(2,))
    four_path = make.geotiff(four, "four.tif", photometric="minisblack", alpha="no", overviews=(2,))
    with rasterio.open(four_path, "r+") as file:
        file.set_band_description(4, "nir")
    (make.folder / "item.json").write_text(json.dumps({"assets": {"b2": {"href": "./four.tif"}}}))
    path = _list(
        make.folder,
        """
        item = "item.json"
        bands = [
            { uri = "one.tif", name = "red" },
            { uri = "four.tif", band = "nir", scale = 0.5, offset = -3 },
            { asset = "b2", band = 2, name = "green" },
        ]
        """,
    )
    with open_raster(path) as raster, open_raster(make.folder / "one.tif") as first:
        assert (raster.format, raster.kind, raster.dtype) == ("bands", "scene", np.float32)
        assert raster.bands == ("red", "nir", "green")
        assert (raster.levels, raster.crs, raster.transform) == (first.levels, first.crs, first.transform)
        window = raster.read(Box(0, 0, 70, 90))
        expected = np.stack([one[..., 0], four[..., 3] * 0.5 - 3, four[..., 1]], -1)
        np.testing.assert_array_equal(window.pixels[window.valid], expected.astype(np.float32)[window.valid])
        assert np.argwhere(~window.valid).tolist() == [[3, 4]]
        low = raster.read(Box(0, 0, 30, 30), 1)
        np.testing.assert_array_equal(low.pixels[..., 0], first.read(Box(0, 0, 30, 30), 1).pixels[..., 0])


def test_integers_are_rounded_and_clipped(make: Any) -> None:
    stored = np.array([[[0], [1], [3], [5], [1000], [400]]], np.uint16)
    make.geotiff(stored, "one.tif")
    path = _list(make.folder, 'dtype = "uint8"\nbands = [{ uri = "one.tif", scale = 0.5, offset = -1 }]')
    with open_raster(path) as raster:
        assert raster.read(raster.levels[0].box).pixels[0, :, 0].tolist() == [0, 0, 0, 2, 255, 199]


def test_a_change_of_a_file_changes_the_fingerprint(make: Any) -> None:
    one = make.geotiff(make.noise((20, 20, 1)), "one.tif")
    path = _list(make.folder, 'bands = [{ uri = "one.tif" }]')
    before = fingerprint(path)
    os.utime(one, (1, 1))
    assert fingerprint(path) != before


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("bands = []", ImageFormatError, "is no band list"),
        ('bands = [{ uri = "one.tif", color = 1 }]', ImageFormatError, "band 1 needs a uri"),
        ('bands = [{ asset = "red" }]', ImageFormatError, "or an asset of the list's STAC item"),
        ('bands = [{ uri = "one.tif", scale = "x" }]', ImageFormatError, "scale 'x'; give a number"),
        ('bands = [{ uri = "one.tif", band = 2 }]', BandsError, "has no band 2"),
        ('bands = [{ uri = "one.tif" }, { uri = "small.tif" }]', ImageFormatError, "bring them to one grid first"),
        ('dtype = "int4"\nbands = [{ uri = "one.tif" }]', ImageFormatError, "dtype 'int4' is none of"),
        ("bands = [", ImageFormatError, "does not read as TOML"),
    ],
)
def test_bad_lists_are_refused(make: Any, text: str, error: type[Exception], message: str) -> None:
    make.geotiff(make.noise((20, 20, 1)), "one.tif")
    make.geotiff(make.noise((10, 20, 1)), "small.tif")
    with pytest.raises(error, match=message) as caught:
        open_raster(_list(make.folder, text))
    assert "\n" not in str(caught.value)


VRT = """<VRTDataset rasterXSize="90" rasterYSize="70"><SRS>EPSG:32636</SRS>
<GeoTransform>450000,0.5,0,40000,0,-0.5</GeoTransform>{bands}</VRTDataset>"""
BAND = """<VRTRasterBand dataType="UInt16" band="{n}"><SimpleSource>
<SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"""


def _vrt(folder: Path, *files: str) -> Path:
    path = folder / "stack.vrt"
    path.write_text(VRT.format(bands="".join(BAND.format(n=i, file=f) for i, f in enumerate(files, 1))))
    return path


@pytest.mark.proves("VRT of local files")
def test_a_vrt_stacks_its_files(make: Any) -> None:
    planes = [make.noise((70, 90, 1), np.uint16, seed=i) for i in range(2)]
    for i, plane in enumerate(planes):
        make.geotiff(plane, f"{i}.tif")
    path = _vrt(make.folder, "0.tif", "1.tif")
    with open_raster(path) as raster:
        assert (raster.kind, raster.format, raster.crs is not None) == ("scene", "vrt", True)
        np.testing.assert_array_equal(raster.read(Box(5, 6, 50, 80)).pixels, np.dstack(planes)[5:50, 6:80])
        before = fingerprint(raster)
    os.utime(make.folder / "1.tif", (1, 1))
    assert fingerprint(path) != before, "a source changed"


def test_a_vrt_without_its_files_or_with_remote_ones_is_an_error(make: Any) -> None:
    make.geotiff(make.noise((70, 90, 1), np.uint16), "0.tif")
    with pytest.raises((CorruptImageError, ImageFormatError)), open_raster(_vrt(make.folder, "0.tif", "no.tif")) as vrt:
        vrt.read(vrt.levels[0].box)
    for source in ("/vsicurl/http://host/a.tif", "/vsis3/bucket/a.tif"):
        path = _vrt(make.folder, "0.tif", source)
        path.write_text(path.read_text().replace('relativeToVRT="1"', 'relativeToVRT="0"'))
        with pytest.raises(ImageFormatError, match="names files that are not on this machine"):
            open_raster(path)
