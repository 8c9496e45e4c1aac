"""Band lists: bands by name and number of several files and STAC assets, scaled by hand-computed values; VRTs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from unetpp.errors import BandsError, CorruptImageError, ImageFormatError
from unetpp.geometry import Box
from unetpp.io import open_raster
from unetpp.io.base import fingerprint
from unetpp.io.geotiff import vrt_sources


def _list(folder: Path, text: str, name: str = "scene.bands.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def _items(path: Path, items: dict[str, dict[str, Any]]) -> Path:
    features = [{"type": "Feature", "stac_version": "1.0.0", "id": key, "assets": items[key]} for key in items]
    document = features[0] if len(features) == 1 else {"type": "FeatureCollection", "features": features}
    path.write_text(json.dumps(document))
    return path


@pytest.mark.proves("bands of several files (.bands.toml)")
def test_bands_of_several_files_scaled_and_named(make: Any) -> None:
    one, four = make.noise((70, 90, 1), np.uint16), make.noise((70, 90, 4), np.uint16, seed=1)
    one[3, 4] = 9999
    make.geotiff(one, "one.tif", nodata=9999, overviews=(2,))
    four_path = make.geotiff(four, "four.tif", photometric="minisblack", alpha="no", overviews=(2,))
    with rasterio.open(four_path, "r+") as file:
        file.set_band_description(4, "nir")
    _items(make.folder / "item.json", {"S2A": {"b2": {"href": "./four.tif"}}})
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


def _sentinel(make: Any, scale: dict[str, float] | None = None) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A band of 71 x 93 px and one whose pixels are twice as large, both with overviews, as assets of an item."""
    fine, coarse = make.noise((71, 93, 1), np.uint16), make.noise((36, 47, 1), np.uint16, seed=1)
    coarse[4, 5] = 9999
    make.geotiff(fine, "red.tif", overviews=(2, 4), transform=from_origin(450_000, 40_000, 10, 10))
    place = from_origin(450_000, 40_000, 20, 20)
    make.geotiff(coarse, "swir.tif", overviews=(2,), nodata=9999, transform=place)
    described = {"bands": [scale]} if scale else {}
    return fine, coarse, {key: {"href": f"{key}.tif", **described} for key in ("red", "swir")}


@pytest.mark.proves("bands of STAC items (.bands.toml)")
def test_each_item_of_a_collection_is_an_image(make: Any) -> None:
    fine, coarse, assets = _sentinel(make)
    _items(make.folder / "search.json", {"S2A_1": assets, "S2B_2": {**assets, "swir": assets["red"]}})
    text = 'items = "search.json"\nbands = [{ asset = "red" }, { asset = "swir", name = "short", scale = 2 }]'
    path = _list(make.folder, text)
    with open_raster(f"{path}#S2A_1") as raster:
        assert (raster.uri, raster.bands) == (f"{path}#S2A_1", ("red", "short"))
        assert [(x.height, x.width) for x in raster.levels] == [(71, 93), (36, 47), (18, 24)]
        large, there = coarse.repeat(2, 0).repeat(2, 1), np.ones((71, 93), bool)
        there[8:10, 10:12] = False
        for box in (Box(0, 0, 71, 93), Box(5, 7, 12, 8), Box(70, 92, 71, 93), Box(-3, -5, 9, 12)):
            window, inside = raster.read(box), box.clip(71, 93)
            here = window.pixels[inside.slices(box)]
            np.testing.assert_array_equal(here[..., 0], fine[inside.slices()][..., 0])
            np.testing.assert_array_equal(here[..., 1], large[inside.slices()][..., 0] * 2)
            np.testing.assert_array_equal(window.valid[inside.slices(box)], there[inside.slices()])
        with open_raster(make.folder / "swir.tif") as swir:
            for level in (1, 2):  # where its pixels are as large, they are its own
                own = swir.read(swir.levels[level - 1].box, level - 1)
                window = raster.read(raster.levels[level].box, level)
                np.testing.assert_array_equal(window.pixels[..., 1], own.pixels[..., 0] * 2)
                np.testing.assert_array_equal(window.valid, own.valid)
    with open_raster(f"{path}#S2B_2") as raster:
        np.testing.assert_array_equal(raster.read(Box(0, 0, 71, 93)).pixels[..., 1], fine[..., 0] * 2)


@pytest.mark.parametrize(
    "scale", [{"raster:scale": 1e-4, "raster:offset": -0.1}, {"scale": 1e-4, "offset": -0.1}], ids=["1.1", "1.0"]
)
def test_physical_values_are_the_items(make: Any, scale: dict[str, float]) -> None:
    """Sentinel-2 since 2022 stores 10,000 times the reflectance plus 1,000: a scale of 0.0001, an offset of -0.1."""
    fine, _, assets = _sentinel(make, scale)
    if "scale" in scale:
        assets = {key: {"href": asset["href"], "raster:bands": asset["bands"]} for key, asset in assets.items()}
    item = _items(make.folder / "item.json", {"S2": assets})
    head = 'item = "item.json"\nphysical = true\n'
    with open_raster(_list(make.folder, head + 'bands = [{ asset = "red" }]')) as raster:
        assert raster.dtype == np.float32
        np.testing.assert_allclose(raster.read(Box(0, 0, 71, 93)).pixels, fine * 1e-4 - 0.1, rtol=1e-5, atol=1e-7)
    stretched = _list(make.folder, head + 'dtype = "uint8"\nbands = [{ asset = "red", scale = -1000, offset = 10.25 }]')
    with open_raster(stretched) as raster:
        expected = np.rint((fine * 1e-4 - 0.1) * -1000 + 10.25)
        np.testing.assert_array_equal(raster.read(Box(0, 0, 71, 93)).pixels, expected.clip(0, 255))
    before = fingerprint(stretched)
    item.write_text(item.read_text().replace("-0.1", "-0.2"))
    assert fingerprint(stretched) != before, "the item now gives other values"


@pytest.mark.parametrize(
    "asset",
    [
        {"bands": [{"name": "B04"}], "raster:bands": [{"scale": 0.5, "offset": -3, "nodata": 77}]},
        {"bands": [{"name": "B04", "raster:scale": 0.5, "nodata": 77}], "raster:bands": [{"offset": -3, "nodata": 1}]},
        {"bands": [{"name": "B04", "nodata": "77"}], "raster:scale": 0.5, "raster:offset": -3},
        {"nodata": 77, "raster:scale": 0.5, "raster:offset": -3},
    ],
    ids=["old", "both", "asset", "bandless"],
)
def test_values_are_stated_by_either_list_of_bands_or_the_asset(make: Any, asset: dict[str, Any]) -> None:
    stored = make.noise((40, 50, 1), np.uint16)
    stored[3, 4] = 77
    make.geotiff(stored, "red.tif")  # says nothing of its nodata
    item = _items(make.folder / "item.json", {"a": {"red": {"href": "red.tif", **asset}}})
    for head, expected in (("physical = true", stored * 0.5 - 3), ("", stored)):
        path = _list(make.folder, f'item = "item.json"\n{head}\nbands = [{{ asset = "red" }}]')
        with open_raster(path) as raster:
            window = raster.read(Box(0, 0, 40, 50))
        np.testing.assert_array_equal(window.pixels, expected)
        np.testing.assert_array_equal(window.valid, stored[..., 0] != 77)
    before = fingerprint(path)
    item.write_text(item.read_text().replace("77", "78"))
    assert fingerprint(path) != before, "other pixels are valid now"


@pytest.mark.parametrize("nodata", [9, "none", [9, 9]])
def test_a_nodata_that_the_file_has_or_that_is_no_number_changes_nothing(make: Any, nodata: Any) -> None:
    make.geotiff(make.noise((20, 20, 2), np.uint16), "two.tif", nodata=9)
    bands = [{"raster:scale": 0.5}, {"raster:scale": 2.0}]
    path = _list(make.folder, 'item = "item.json"\nphysical = true\nbands = [{ asset = "red", band = 2 }]')
    found = []
    for more in ({}, {"nodata": nodata}):
        _items(make.folder / "item.json", {"a": {"red": {"href": "two.tif", "bands": bands, **more}}})
        with open_raster(path) as raster:
            # As keys of earlier versions have it: of every band of the asset.
            assert raster.item_values == [((0.5, 0.0), (2.0, 0.0))]  # type: ignore[attr-defined]
            found.append((fingerprint(raster), raster.read(Box(0, 0, 20, 20)).valid.tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "asset", [{}, {"raster:bands": [{"nodata": 0}]}, {"bands": [{"name": "B03"}, {"raster:scale": None}]}]
)
def test_physical_values_that_the_item_does_not_state_are_refused(make: Any, asset: dict[str, Any]) -> None:
    make.geotiff(make.noise((20, 20, 2), np.uint16), "two.tif")
    _items(make.folder / "item.json", {"S2A": {"two": {"href": "two.tif", **asset}}})
    text = 'item = "item.json"\nphysical = true\nbands = [{ asset = "two", band = 2, scale = 850 }]'
    with pytest.raises(
        ImageFormatError, match="item 'S2A' states neither scale nor offset of band 2 of its asset 'two'"
    ):
        open_raster(_list(make.folder, text))


def test_documents_are_found_by_their_file_uri(make: Any) -> None:
    pixels = make.noise((20, 20, 1))
    asset = {"href": make.geotiff(pixels, "a scene.tif").as_uri()}
    item = _items(make.folder / "an item.json", {"a": {"red": asset}})
    with open_raster(_list(make.folder, f'item = "{item.as_uri()}"\nbands = [{{ asset = "red" }}]')) as raster:
        np.testing.assert_array_equal(raster.read(Box(0, 0, 20, 20)).pixels, pixels)


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
        ('item = "a.json"\nitems = "a.json"\nbands = [{ asset = "red" }]', ImageFormatError, "is no band list"),
        ('item = 7\nbands = [{ asset = "red" }]', ImageFormatError, "item = 7; give a str"),
        ('item = "no.json"\nbands = [{ asset = "red" }]', ImageFormatError, "no.json cannot be read"),
        ('item = "two.json"\nbands = [{ asset = "red" }]', ImageFormatError, "holds 2 items; name it as items"),
        ('items = "two.json"\nbands = [{ asset = "red" }]', ImageFormatError, "one image per item"),
        ('item = "one.json"\nbands = [{ asset = "nir" }]', ImageFormatError, "no asset 'nir'; it has red"),
        ('item = "bad.json"\nbands = [{ asset = "red" }]', ImageFormatError, "a scale of nan"),
        ('physical = true\nbands = [{ uri = "one.tif" }]', ImageFormatError, "physical = true needs an item"),
    ],
)
def test_bad_lists_are_refused(make: Any, text: str, error: type[Exception], message: str) -> None:
    make.geotiff(make.noise((20, 20, 1)), "one.tif")
    make.geotiff(make.noise((10, 20, 1)), "small.tif")
    _items(make.folder / "one.json", {"a": {"red": {"href": "one.tif"}}})
    _items(make.folder / "bad.json", {"a": {"red": {"href": "one.tif", "raster:scale": "nan"}}})
    _items(make.folder / "two.json", {key: {"red": {"href": "one.tif"}} for key in "ab"})
    with pytest.raises(error, match=message) as caught:
        open_raster(_list(make.folder, text))
    assert "\n" not in str(caught.value)


def test_an_item_that_is_not_there_is_an_error(make: Any) -> None:
    _items(make.folder / "two.json", {key: {"red": {"href": "one.tif"}} for key in "ab"})
    path = _list(make.folder, 'items = "two.json"\nbands = [{ asset = "red" }]')
    with pytest.raises(ImageFormatError, match="has no item 'c'"):
        open_raster(f"{path}#c")
    with pytest.raises(ImageFormatError, match="is one image, without"):
        open_raster(f"{_list(make.folder, 'bands = [{ uri = 0 }]', 'single.bands.toml')}#a")


VRT = """<VRTDataset rasterXSize="90" rasterYSize="70"><SRS>EPSG:32636</SRS>
<GeoTransform>450000,0.5,0,40000,0,-0.5</GeoTransform>{bands}</VRTDataset>"""
BAND = """<VRTRasterBand dataType="UInt16" band="{n}"><SimpleSource>
<SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"""


def _vrt(folder: Path, *files: str, name: str = "stack.vrt") -> Path:
    path = folder / name
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


def test_masks_of_a_vrt_s_bands_count(make: Any) -> None:
    for i in range(2):
        make.geotiff(make.noise((70, 90, 1), np.uint16, seed=i), f"{i}.tif")
    masks = np.ones((2, 70, 90, 1), np.uint8)
    masks[0, :20] = masks[1, :, :30] = 0
    path = _vrt(make.folder, "0.tif", "1.tif")
    text = path.read_text()
    for i in range(2):
        make.geotiff(masks[i], f"mask{i}.tif")
        mask = BAND.format(n=0, file=f"mask{i}.tif").replace('"UInt16" band="0"', '"Byte"')
        text = text.replace(f'band="{i + 1}">', f'band="{i + 1}"><MaskBand>{mask}</MaskBand>', 1)
    path.write_text(text)
    with open_raster(path) as raster, rasterio.open(path) as file:
        valid = raster.read(raster.levels[0].box).valid
        np.testing.assert_array_equal(valid, file.read_masks().all(axis=0))
        np.testing.assert_array_equal(valid, masks.all(axis=0)[..., 0])


def test_a_pixel_of_a_vrt_with_listed_overviews_depends_on_no_window(make: Any) -> None:
    make.geotiff(make.noise((203, 301, 1), np.uint16), "0.tif", overviews=(2,))
    path = _vrt(make.folder, "0.tif")
    end = '<OverviewList resampling="average">2 4</OverviewList></VRTDataset>'
    path.write_text(path.read_text().replace("</VRTDataset>", end).replace('"70"', '"203"').replace('"90"', '"301"'))
    with rasterio.open(path) as file:
        assert file.overviews(1) == [2, 4] and (file.height, file.width) == (203, 301)
    with open_raster(path) as raster:
        for level, size in enumerate(raster.levels):
            whole = raster.read(size.box, level).pixels
            for y in range(0, size.height, 17):
                box = Box(y, 5, min(y + 17, size.height), size.width)
                np.testing.assert_array_equal(raster.read(box, level).pixels, whole[box.slices()])


def test_a_vrt_of_vrts_is_known_by_its_leaves(make: Any) -> None:
    plane = make.noise((70, 90, 1), np.uint16)
    make.geotiff(plane, "leaf.tif", overviews=(2,))
    (make.folder / "deep" / "vsi").mkdir(parents=True)
    _vrt(make.folder / "deep" / "vsi", "../../leaf.tif", name="inner.xml")
    path = _vrt(make.folder, "deep/vsi/inner.xml")
    with open_raster(path) as raster:
        np.testing.assert_array_equal(raster.read(Box(0, 0, 70, 90)).pixels, plane)
        before = fingerprint(raster)
    assert {file.name for file in vrt_sources(path)} == {"inner.xml", "leaf.tif"}
    for changed in ("leaf.tif", "deep/vsi/inner.xml"):
        os.utime(make.folder / changed, (1, 1))
        assert fingerprint(path) != before, changed
        before = fingerprint(path)
    (make.folder / "leaf.tif.ovr").touch()
    assert fingerprint(path) != before, "GDAL reads that too"
    (make.folder / "leaf.tif").unlink()
    with pytest.raises(CorruptImageError, match=r"inner\.xml: names '\.\./\.\./leaf\.tif', which does not exist"):
        open_raster(path)


def test_vrts_that_name_each_other_end_in_one_line(make: Any) -> None:
    _vrt(make.folder, "two.vrt", name="one.vrt")
    with pytest.raises(CorruptImageError, match=r"one\.vrt.*Recursion"):
        path = _vrt(make.folder, "one.vrt", name="two.vrt")
        with open_raster(make.folder / "one.vrt") as raster:
            raster.read(raster.levels[0].box)
    assert vrt_sources(path) == [make.folder / "one.vrt"]


@pytest.mark.parametrize(
    "name",
    ["no.tif", "/vsicurl/http://host/a.tif", "&#47;vsis3/bucket/a.tif", "http:&#47;/host/a.tif", "NETCDF:no.nc:a"],
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_vrt_without_its_files_or_with_remote_ones_is_an_error(make: Any, name: str, depth: int) -> None:
    make.geotiff(make.noise((70, 90, 1), np.uint16), "0.tif")
    path = _vrt(make.folder, "0.tif", name)
    for outer in range(depth):
        path = _vrt(make.folder, "0.tif", path.name, name=f"outer{outer}.vrt")
    what = "names files that are not on this machine" if "host" in name or "vsi" in name else "which does not exist"
    with pytest.raises((CorruptImageError, ImageFormatError), match=rf"stack\.vrt: .*{what}") as caught:
        open_raster(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "bb">]><VRTDataset>&b;</VRTDataset>', "has a document type"),
        (
            '<VRTDataset><VRTRasterBand><SimpleSource sourcefilename="/vsicurl/a"/></VRTRasterBand></VRTDataset>',
            "machine",
        ),
        ("<VRTDataset><a><PixelFunctionLanguage>Python</PixelFunctionLanguage></a></VRTDataset>", "code of its own"),
        (
            '<GDAL_WMS><Service name="TMS"><ServerUrl>http://host</ServerUrl></Service></GDAL_WMS>',
            "is no VRT but GDAL_WMS",
        ),
        ('{"type": "Feature", "stac_version": "1.0.0"}', "is no VRT that reads as XML"),
        ("<VRTDataset>", "is no VRT that reads as XML"),
    ],
)
def test_descriptions_that_cannot_be_trusted_are_refused_at_any_depth(make: Any, text: str, message: str) -> None:
    inner = make.folder / "inner.vrt"
    inner.write_text(text)
    for path in (inner, _vrt(make.folder, "inner.vrt")):
        with pytest.raises(ImageFormatError, match=message) as caught:
            open_raster(path)
        assert "\n" not in str(caught.value)


def test_a_subdataset_of_a_local_file_is_read(make: Any) -> None:
    plane = make.noise((70, 90, 1), np.uint16)
    path = _vrt(make.folder, f"GTIFF_DIR:1:{make.geotiff(plane, 'leaf.tif')}")
    path.write_text(path.read_text().replace(' relativeToVRT="1"', ""))
    with open_raster(path) as raster:
        np.testing.assert_array_equal(raster.read(Box(0, 0, 70, 90)).pixels, plane)
    assert vrt_sources(path) == [make.folder / "leaf.tif"]
