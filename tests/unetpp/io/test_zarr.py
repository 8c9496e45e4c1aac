"""Tests of the Zarr reader on images written by ome-zarr and zarr, compared with what zarr itself reads."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_image, write_multiscale

from unetpp.errors import CorruptImageError, ImageFormatError
from unetpp.geometry import Box, Spacing
from unetpp.io import open_raster
from unetpp.io.base import Pixels

FORMATS = {"0.4": FormatV04, "0.5": FormatV05}
SHAPES = {"t": 1, "c": 3, "z": 1, "y": 45, "x": 38}


def _noise(*shape: int, dtype: Any = np.uint8) -> Pixels:
    return np.random.default_rng(9).integers(0, 250, shape).astype(dtype)


def _ome(path: Path, version: str, axes: str = "cyx", unit: str | None = "micrometer", **options: Any) -> Pixels:
    """Write noise at 0.5 x 0.25 `unit` in three levels; return level 0."""
    style = FORMATS[version]()
    group = zarr.open_group(path, mode="w", zarr_format=style.zarr_format)
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in described:
        if unit and axis["name"] in "yx":
            axis["unit"] = unit
    image = _noise(*(SHAPES[axis] for axis in axes))
    sizes = {"y": 0.5, "x": 0.25}
    pyramid = [image, image[..., ::2, ::2], image[..., ::4, ::4]]
    scales = [
        [{"type": "scale", "scale": [sizes.get(axis, 1.0 / 2**n) * 2**n for axis in axes]}] for n in range(len(pyramid))
    ]
    write_multiscale(pyramid, group, fmt=style, axes=described, coordinate_transformations=scales, **options)
    return image


def _last(image: Pixels, axes: str) -> Pixels:
    """Return (y, x, c) of an array with these axes."""
    for axis in axes:
        if axis not in "cyx":
            image, axes = image.take(0, axes.index(axis)), axes.replace(axis, "")
    if "c" not in axes:
        image, axes = image[None], "c" + axes
    return image.transpose([axes.index(axis) for axis in "yxc"])


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "czyx", "tczyx"])
@pytest.mark.proves("OME-Zarr 0.4 and 0.5")
def test_ome_zarr_is_read_pixel_for_pixel(tmp_path: Path, version: str, axes: str) -> None:
    image = _ome(tmp_path / "a.zarr", version, axes)
    with open_raster(tmp_path / "a.zarr") as raster:
        assert [(x.height, x.width, x.downsample) for x in raster.levels] == [(45, 38, 1), (23, 19, 2), (12, 10, 4)]
        assert raster.format == ("ome-zarr v2" if version == "0.4" else "ome-zarr v3")
        assert raster.bands == (("red", "green", "blue") if "c" in axes else ("gray",))
        assert raster.spacing == Spacing(0.5, 0.25, "um")
        assert (raster.kind, raster.crs, raster.transform) == ("image", None, None)
        for number, level in enumerate(raster.levels):
            stored = zarr.open_group(tmp_path / "a.zarr", mode="r")[_path(tmp_path / "a.zarr", number)][:]
            window = raster.read(level.box, number)
            assert np.array_equal(window.pixels, _last(stored, axes))
            assert window.valid.all()
        assert np.array_equal(raster.read(raster.levels[0].box).pixels, _last(image, axes))


def _path(folder: Path, level: int) -> str:
    attributes = dict(zarr.open_group(folder, mode="r").attrs)
    found: str = attributes.get("ome", attributes)["multiscales"][0]["datasets"][level]["path"]
    return found


@pytest.mark.parametrize("version", FORMATS)
def test_pyramid_made_by_the_library(tmp_path: Path, version: str) -> None:
    """Its own scaling, chunks smaller than the image, its own scale metadata."""
    image = _noise(3, 130, 97, dtype=np.uint16)
    style = FORMATS[version]()
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=style.zarr_format)
    write_image(image, group, scale_factors=(2, 4), fmt=style, axes="cyx", storage_options={"chunks": (1, 32, 32)})
    with open_raster(tmp_path / "a.zarr") as raster:
        assert raster.dtype == np.uint16
        assert [level.downsample for level in raster.levels] == [1, 2, 4]
        assert raster.bands == ("band1", "band2", "band3")
        assert raster.spacing is None
        whole = np.pad(image.transpose(1, 2, 0), ((20, 20), (20, 20), (0, 0)))
        random = np.random.default_rng(3)
        for _ in range(20):
            y, x = int(random.integers(-20, 110)), int(random.integers(-20, 80))
            window = raster.read(Box(y, x, y + 40, x + 35))
            assert np.array_equal(window.pixels, whole[y + 20 : y + 60, x + 20 : x + 55])
            rows, columns = np.arange(y, y + 40)[:, None], np.arange(x, x + 35)
            assert np.array_equal(window.valid, (rows >= 0) & (rows < 130) & (columns >= 0) & (columns < 97))


@pytest.mark.parametrize(
    ("unit", "spacing"),
    [
        ("nanometer", Spacing(0.5e-3, 0.25e-3, "um")),
        ("millimeter", Spacing(500, 250, "um")),
        ("meter", Spacing(0.5, 0.25, "m")),
        ("parsec", None),
        (None, None),
    ],
)
def test_scale_and_unit_make_the_spacing(tmp_path: Path, unit: str | None, spacing: Spacing | None) -> None:
    _ome(tmp_path / "a.zarr", "0.4", unit=unit)
    with open_raster(tmp_path / "a.zarr") as raster:
        assert raster.spacing == spacing
        coarse = raster.read(Box(0, 0, 4, 4), 2).spacing
        assert coarse == (spacing.scaled(4, 4) if spacing else None)


@pytest.mark.parametrize("size", [0, -0.25, math.nan, math.inf])
def test_a_scale_that_is_no_length_is_no_spacing(tmp_path: Path, size: float) -> None:
    """So that --spacing can say it: as an error it would name no image and keep it from being opened."""
    _ome(tmp_path / "a.zarr", "0.4", unit="micrometer")
    group = zarr.open_group(tmp_path / "a.zarr")
    multiscales: Any = group.attrs["multiscales"]
    multiscales[0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 1, size]}]
    group.attrs["multiscales"] = multiscales
    with open_raster(tmp_path / "a.zarr") as raster:
        assert raster.spacing is None


def test_scale_of_the_whole_multiscale_counts(tmp_path: Path) -> None:
    _ome(tmp_path / "a.zarr", "0.4")
    group = zarr.open_group(tmp_path / "a.zarr")
    multiscales: Any = group.attrs["multiscales"]
    multiscales[0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 2, 3]}]
    group.attrs["multiscales"] = multiscales
    with open_raster(tmp_path / "a.zarr") as raster:
        assert raster.spacing == Spacing(1.0, 0.75, "um")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("axes", ["yx", "xy", *map("".join, permutations("cyx"))])
@pytest.mark.proves("Zarr v2 and v3 arrays")
def test_plain_array_in_every_axis_order(tmp_path: Path, zarr_format: Any, axes: str) -> None:
    image = _noise(*({"c": 4, "y": 21, "x": 33}[axis] for axis in axes), dtype=np.int16)
    names = {"dimension_names": tuple(axes)} if zarr_format == 3 else {"attributes": {"_ARRAY_DIMENSIONS": list(axes)}}
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=image, chunks=tuple(min(n, 16) for n in image.shape), zarr_format=zarr_format, **names)
    with open_raster(path) as raster:
        assert raster.format == f"zarr v{zarr_format}"
        assert raster.spacing is None
        assert len(raster.bands) == (4 if "c" in axes else 1)
        truth = _last(image, axes)
        assert np.array_equal(raster.read(raster.levels[0].box).pixels, truth)
        assert np.array_equal(raster.read(Box(3, 7, 19, 30)).pixels, truth[3:19, 7:30])


def test_array_without_axis_names_and_other_byte_order(tmp_path: Path) -> None:
    image = _noise(2, 9, 8, dtype=">u2")
    zarr.create_array(tmp_path / "a.zarr", data=image, zarr_format=2)
    with open_raster(tmp_path / "a.zarr") as raster:
        assert raster.dtype == np.dtype("uint16").newbyteorder("=")
        assert np.array_equal(raster.read(raster.levels[0].box).pixels, image.transpose(1, 2, 0))


def test_nan_is_invalid(tmp_path: Path) -> None:
    image = np.ones((2, 9, 8), np.float32)
    image[1, 3, 5] = np.nan
    zarr.create_array(tmp_path / "a.zarr", data=image)
    with open_raster(tmp_path / "a.zarr") as raster:
        valid = raster.read(raster.levels[0].box).valid
    assert np.argwhere(~valid).tolist() == [[3, 5]]


def test_channel_labels_name_the_bands(tmp_path: Path) -> None:
    _ome(tmp_path / "a.zarr", "0.5")
    group = zarr.open_group(tmp_path / "a.zarr")
    ome: Any = group.attrs["ome"]
    group.attrs["ome"] = {**ome, "omero": {"channels": [{"label": x} for x in ("DAPI", "FITC", "Cy5")]}}
    with open_raster(tmp_path / "a.zarr") as raster:
        assert raster.bands == ("DAPI", "FITC", "Cy5")


def test_the_only_series_of_a_folder_is_opened(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    image = _ome(tmp_path / "a.zarr" / "0", "0.4")
    with open_raster(tmp_path / "a.zarr") as raster:
        assert np.array_equal(raster.read(raster.levels[0].box).pixels, _last(image, "cyx"))
    _ome(tmp_path / "a.zarr" / "1", "0.4")
    with pytest.raises(ImageFormatError, match=r"holds 2 images \(0, 1\)"):
        open_raster(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("damage", [lambda data: b"\xff" * len(data), lambda data: data[: len(data) // 2]])
def test_corrupt_chunk_is_named(tmp_path: Path, version: str, damage: Any) -> None:
    path = tmp_path / "a.zarr"
    _ome(path, version)
    for file in sorted((path / _path(path, 1)).rglob("*")):
        if file.is_file() and not file.name.startswith((".z", "zarr.json")):
            file.write_bytes(damage(file.read_bytes()))
    with open_raster(path) as raster:
        raster.read(raster.levels[0].box)
        with pytest.raises(CorruptImageError, match=r"a\.zarr: level 1 Box\(.*does not decode") as caught:
            raster.read(raster.levels[1].box, 1)
        assert "\n" not in str(caught.value)


def test_damaged_metadata_is_corrupt(tmp_path: Path) -> None:
    _ome(tmp_path / "a.zarr", "0.5")
    (tmp_path / "a.zarr" / "zarr.json").write_text("{ not json")
    with pytest.raises(CorruptImageError, match="metadata is damaged"):
        open_raster(tmp_path / "a.zarr")


def test_missing_level_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    _ome(path, "0.4")
    (path / _path(path, 2) / ".zarray").unlink()
    with pytest.raises(CorruptImageError, match="levels are incomplete"):
        open_raster(path)


@pytest.mark.parametrize("scale", [[1, 1], ["wide", 1, 1]])
def test_scale_that_does_not_fit_is_corrupt(tmp_path: Path, scale: list[Any]) -> None:
    path = tmp_path / "a.zarr"
    _ome(path, "0.4")
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
    (path / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(CorruptImageError, match="levels are incomplete"):
        open_raster(path)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    zarr.create_array(tmp_path / "line.zarr", data=np.arange(5))
    zarr.create_array(tmp_path / "cube.zarr", data=np.zeros((2, 4, 4)), dimension_names=("z", "y", "x"))
    zarr.create_array(tmp_path / "complex.zarr", data=np.zeros((4, 4), np.complex64))
    words = {
        "folder": "without Zarr metadata",
        "group.zarr": "no OME-Zarr multiscales",
        "line.zarr": "is not a .* image",
        "cube.zarr": "axis z has length 2",
        "complex.zarr": "sample type complex64",
    }
    for name, message in words.items():
        with pytest.raises(ImageFormatError, match=f"{name}: .*{message}"):
            open_raster(tmp_path / name)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_true_is_1(tmp_path: Path, zarr_format: Any) -> None:
    """Of one band and of three, which are masks beside each other and no colours."""
    for shape, bands in (((45, 38), ("gray",)), ((3, 45, 38), ("band1", "band2", "band3"))):
        marked = _noise(*shape) < 90
        zarr.create_array(tmp_path / "a.zarr", data=marked, zarr_format=zarr_format, overwrite=True)
        with open_raster(tmp_path / "a.zarr") as raster:
            assert (raster.dtype, raster.bands) == (np.uint8, bands)
            window = raster.read(Box(-1, -1, 46, 39))
        assert window.pixels.dtype == np.uint8 and window.valid.sum() == 45 * 38
        assert np.array_equal(window.pixels[1:-1, 1:-1], np.where(_last(marked, "cyx"[-marked.ndim :]), 1, 0))


@pytest.mark.parametrize("shape", [(3, 0, 9), (3, 9, 0), (0, 9, 9)])
def test_an_array_without_pixels_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=(1, 4, 4), dtype=np.uint8)
    with pytest.raises(ImageFormatError, match=r"a\.zarr: array of shape \(.*\) holds no pixels"):
        open_raster(tmp_path / "a.zarr")
