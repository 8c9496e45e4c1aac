"""Tests of the output grid and its filter against the documented formula; reads rasters that live in memory."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyproj
import pytest
import tifffile

from unetpp.errors import PlanError, SpacingError
from unetpp.geometry import Box, Spacing, Transform
from unetpp.io import open_raster, resample
from unetpp.io.base import Mask, Pixels
from unetpp.io.reader import ReaderBase, make_levels
from unetpp.io.resample import GridReader, OutputGrid, ground_spacing, plan_grid


class MemoryRaster(ReaderBase):
    """A raster of given arrays (H, W, C), finest first."""

    uri, kind, format = "memory", "image", "memory"

    def __init__(self, *arrays: Pixels, valid: Mask | None = None, um: float | None = None, **attributes: Any) -> None:
        self.arrays, self.mask = arrays, valid
        self.dtype = arrays[0].dtype
        self.levels = make_levels([array.shape[:2] for array in arrays])
        self.bands = tuple(f"band{i}" for i in range(arrays[0].shape[2]))
        self.spacing = None if um is None else Spacing(um, um, "um")
        for name, value in attributes.items():
            setattr(self, name, value)

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        mask = None if self.mask is None else self.mask[box.slices()]
        return self.arrays[level][box.slices()].copy(), mask


def _um(value: float) -> Spacing:
    return Spacing(value, value, "um")


def _noise(height: int, width: int, dtype: Any = np.uint8, channels: int = 2) -> Pixels:
    random = np.random.default_rng(11)
    if np.dtype(dtype).kind == "f":
        return random.normal(0, 10, (height, width, channels)).astype(dtype)
    return random.integers(0, np.iinfo(dtype).max, (height, width, channels), endpoint=True).astype(dtype)


def _weights(size: int, out: int, ratio: float) -> Pixels:
    """The documented filter as a dense (out, size) matrix in fp64."""
    matrix = np.zeros((out, size))
    for i in range(out):
        for j in range(size):
            matrix[i, j] = max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * ratio) / max(1.0, ratio))
    return matrix / matrix.sum(1, keepdims=True)


def _truth(image: Pixels, grid: OutputGrid) -> Pixels:
    rows = _weights(image.shape[0], grid.height, grid.step_y)
    columns = _weights(image.shape[1], grid.width, grid.step_x)
    return np.einsum("iy,yxc,jx->ijc", rows, image.astype(np.float64), columns)


def _whole(grid: OutputGrid) -> Box:
    return Box(0, 0, grid.height, grid.width)


@pytest.mark.parametrize("spacing", [0.13, 0.4, 0.77, 1.25, 2.0, 3.7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_pixels_are_the_documented_filter(spacing: float, dtype: Any) -> None:
    image = _noise(37, 29, dtype)
    raster = MemoryRaster(image, um=0.5)
    grid = plan_grid(raster, model_spacing=_um(spacing))
    assert math.isclose(grid.step_y, spacing / 0.5)
    window = GridReader(raster, grid).read(_whole(grid))
    truth = _truth(image, grid)
    assert window.pixels.dtype == dtype
    assert window.valid.all()
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(window.pixels, truth, rtol=1e-12, atol=1e-12)
    else:
        # float32 sums: off by at most the rounding at a tie, and nearly never.
        slack = 0.5 + (1e-4 if dtype == np.uint8 else 0.02)
        assert np.abs(window.pixels - truth).max() <= slack
    height = sum((i + 0.5) * grid.step_y < 37 for i in range(1000))
    assert grid.height in (height, height + 1), "a pixel exists where its centre lies inside the image"


@pytest.mark.parametrize("spacing", [0.3, 0.9, 1.7])
def test_random_boxes_equal_the_whole_read(monkeypatch: pytest.MonkeyPatch, spacing: float) -> None:
    """Bit for bit, also in small pieces and past the edge."""
    raster = MemoryRaster(_noise(61, 83, np.float32), um=0.5)
    grid = plan_grid(raster, model_spacing=_um(spacing))
    reader = GridReader(raster, grid)
    whole = np.pad(reader.read(_whole(grid)).pixels, ((9, 9), (9, 9), (0, 0)))
    monkeypatch.setattr(resample, "MAX_SOURCE_PIXELS", 300)
    random = np.random.default_rng(2)
    for _ in range(40):
        y0, x0 = int(random.integers(-9, grid.height)), int(random.integers(-9, grid.width))
        y1, x1 = min(y0 + 1 + int(random.integers(40)), grid.height + 9), min(x0 + 25, grid.width + 9)
        window = reader.read(Box(y0, x0, y1, x1))
        assert np.array_equal(window.pixels, whole[y0 + 9 : y1 + 9, x0 + 9 : x1 + 9])
        rows, columns = np.arange(y0, y1), np.arange(x0, x1)
        inside = ((rows >= 0) & (rows < grid.height))[:, None] & ((columns >= 0) & (columns < grid.width))
        assert np.array_equal(window.valid, inside)


@pytest.mark.parametrize("spacing", [0.2, 0.6, 1.3, 4.0])
def test_constant_stays_constant(spacing: float) -> None:
    raster = MemoryRaster(np.full((50, 40, 3), 201, np.uint8), um=0.5)
    grid = plan_grid(raster, model_spacing=_um(spacing))
    assert (GridReader(raster, grid).read(_whole(grid)).pixels == 201).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_constant_file_whose_level_lacks_its_last_rows_stays_constant(make: Any, dtype: Any) -> None:
    """1023 px have a level of 255 by floor division, and a grid with a last pixel where that level has none."""
    path = make.folder / "floor.ome.tif"
    with tifffile.TiffWriter(path) as file:
        metadata = {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        file.write(np.full((1023, 1023), 200, dtype), subifds=1, metadata=metadata, tile=(256, 256))
        file.write(np.full((255, 255), 200, dtype), subfiletype=1, tile=(256, 256))
    with open_raster(path) as raster:
        for spacing in (1.025, 1.05, 1.09):
            grid = plan_grid(raster, model_spacing=_um(spacing))
            assert grid.level == 1
            window = GridReader(raster, grid).read(_whole(grid))
            assert window.valid.all()
            assert (window.pixels == 200).all()


@pytest.mark.parametrize("spacing", [1.025, 1.05, 1.09, 1.3])
def test_only_pixels_past_a_level_change_and_boxes_stay_the_whole(spacing: float) -> None:
    image = _noise(1023, 12, np.float64)
    raster = MemoryRaster(image, image[:1020:4, ::4].copy(), um=0.25)
    grid = plan_grid(raster, model_spacing=Spacing(spacing, 1.0, "um"))
    with np.errstate(invalid="ignore"):
        rows = _weights(255, grid.height, spacing)
    past = np.isnan(rows[:, 0])
    assert past.sum() == (spacing < 1.1)
    rows[past] = np.arange(255) == 254
    reader = GridReader(raster, grid)
    whole = reader.read(_whole(grid)).pixels
    np.testing.assert_allclose(whole, np.einsum("iy,yxc->ixc", rows, raster.arrays[1]), rtol=1e-12, atol=1e-12)
    for start in range(grid.height - 5, grid.height):
        box = Box(start, 0, grid.height, grid.width)
        assert np.array_equal(reader.read(box).pixels, whole[box.slices()])


@pytest.mark.parametrize("spacing", [0.25, 0.5 / 3, 1.0, 1.5, 2.0])
def test_ramp_stays_a_ramp_at_exact_positions(spacing: float) -> None:
    """Away from the edge, where the tent is whole; at whole ratios and their inverses its mean is its centre."""
    y, x = np.mgrid[:60, :72] + 0.5
    raster = MemoryRaster(np.stack([y, x], -1), um=0.5)
    grid = plan_grid(raster, model_spacing=_um(spacing))
    pixels = GridReader(raster, grid).read(_whole(grid)).pixels
    ratio = spacing / 0.5
    edge = math.ceil(max(1.0, ratio) / ratio)
    rows, columns = (np.arange(n) + 0.5 for n in (grid.height, grid.width))
    inner = slice(edge, -edge)
    np.testing.assert_allclose(pixels[inner, inner, 0], np.tile(rows[inner, None] * ratio, (1, grid.width - 2 * edge)))
    np.testing.assert_allclose(pixels[inner, inner, 1], np.tile(columns[inner] * ratio, (grid.height - 2 * edge, 1)))


@pytest.mark.parametrize("spacing", [0.3, 1.0, 1.6])
def test_validity_is_conservative(spacing: float) -> None:
    valid = np.random.default_rng(4).random((45, 52)) > 0.02
    raster = MemoryRaster(_noise(45, 52), valid=valid, um=0.5)
    grid = plan_grid(raster, model_spacing=_um(spacing))
    rows, columns = _weights(45, grid.height, grid.step_y), _weights(52, grid.width, grid.step_x)
    touched = np.einsum("iy,yx,jx->ij", (rows > 0).astype(int), (~valid).astype(int), (columns > 0).astype(int)) > 0
    found = GridReader(raster, grid).read(_whole(grid)).valid
    assert 0 < touched.mean() < 1
    assert np.array_equal(found, ~touched)


def test_what_is_not_finite_becomes_zero_and_stays_local() -> None:
    image = np.ones((24, 24, 1), np.float32)
    image[10, 10], image[3, 20], image[20, 3] = np.nan, np.inf, -np.inf
    raster = MemoryRaster(image, valid=np.isfinite(image[..., 0]), um=0.5)
    for spacing in (0.5, 1.0):
        grid = plan_grid(raster, model_spacing=_um(spacing))
        window = GridReader(raster, grid).read(_whole(grid))
        assert np.isfinite(window.pixels).all()
        assert (window.pixels[window.valid] == 1).all()
        assert not window.valid.all()


def test_integers_round_half_to_even() -> None:
    """Enlarged 2 times, pixels are 3/4 of one neighbour and 1/4 of the other: steps of 2 land on halves."""
    image = np.array([0, 2, 4, 10, 12, 254], np.uint8).reshape(1, 6, 1)
    raster = MemoryRaster(image, um=0.5, spacing=Spacing(0.5, 0.5, "um"))
    grid = plan_grid(raster, model_spacing=Spacing(0.5, 0.25, "um"))
    pixels = GridReader(raster, grid).read(_whole(grid)).pixels[0, :, 0]
    # 0.5, 1.5 | 2.5, 3.5 | 5.5, 8.5 | 10.5, 11.5 | 72.5, 193.5
    assert pixels.tolist() == [0, 0, 2, 2, 4, 6, 8, 10, 12, 72, 194, 254]


def test_model_without_spacing_reads_level_0_unchanged() -> None:
    image = _noise(40, 30)
    raster = MemoryRaster(image, image[::2, ::2], um=None)
    grid = plan_grid(raster, model_spacing=None)
    assert (grid.height, grid.width, grid.step_y, grid.step_x, grid.level, grid.spacing) == (40, 30, 1.0, 1.0, 0, None)
    assert np.array_equal(GridReader(raster, grid).read(_whole(grid)).pixels, image)


def test_unknown_spacing_names_the_option() -> None:
    raster = MemoryRaster(_noise(8, 8))
    with pytest.raises(SpacingError, match=r"memory: no pixel spacing .* --spacing 0\.25um"):
        plan_grid(raster, model_spacing=_um(0.5))


def test_override_beats_metadata() -> None:
    raster = MemoryRaster(_noise(40, 40), um=0.5)
    grid = plan_grid(raster, model_spacing=_um(1.0), override=_um(0.25))
    assert (grid.step_y, grid.height, grid.spacing) == (4.0, 10, _um(1.0))


def test_micrometres_compare_with_metres() -> None:
    raster = MemoryRaster(_noise(40, 40), um=0.5)
    grid = plan_grid(raster, model_spacing=Spacing(1e-6, 2e-6, "m"))
    assert (grid.step_y, grid.step_x) == pytest.approx((2, 4))
    assert (grid.height, grid.width) == (20, 10)
    assert grid.spacing is not None
    assert grid.spacing.unit == "um"


@pytest.mark.parametrize(("model", "words"), [(0.05, "10 times coarser"), (100.0, "smaller than one pixel")])
def test_absurd_enlargement_and_reduction_are_refused(model: float, words: str) -> None:
    with pytest.raises(SpacingError, match=rf"{words}.*--spacing"):
        plan_grid(MemoryRaster(_noise(40, 40), um=0.5), model_spacing=_um(model))


def _scene(crs: int | str, transform: Transform, unit: Any) -> MemoryRaster:
    spacing = Spacing(-transform[4], transform[0], unit)
    return MemoryRaster(_noise(20, 30), spacing=spacing, transform=transform, crs=pyproj.CRS(crs).to_wkt())


@pytest.mark.parametrize("latitude", [0.0, 47.0, -63.5])
def test_degrees_are_measured_at_the_centre(latitude: float) -> None:
    step = 1e-4
    raster = _scene(4326, (step, 0, 8, 0, -step, latitude + 10 * step), "deg")
    ground = ground_spacing(raster)
    geod, middle = pyproj.Geod(ellps="WGS84"), 8 + 15 * step
    east = geod.inv(middle, latitude, middle + step, latitude)[2]
    north = geod.inv(middle, latitude - step / 2, middle, latitude + step / 2)[2]
    assert ground is not None
    assert ground.unit == "m"
    assert (ground.y, ground.x) == pytest.approx((north, east), rel=1e-6)
    grid = plan_grid(raster, model_spacing=Spacing(20, 20, "m"))
    assert (grid.step_y, grid.step_x) == pytest.approx((20 / north, 20 / east), rel=1e-6)
    assert grid.spacing is not None
    assert grid.spacing.unit == "deg"


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, -135.0])
def test_rotated_degrees_are_measured_along_the_grid(angle: float) -> None:
    """Pixels of 2 x 3 m on the ground at 60 degrees north, whichever way they lie."""
    geod, turn = pyproj.Geod(ellps="WGS84"), math.radians(angle)
    per_east, per_north = 0.01 / geod.inv(8, 60, 8.01, 60)[2], 0.01 / geod.inv(8, 59.995, 8, 60.005)[2]
    a, d = 3 * math.cos(turn) * per_east, 3 * math.sin(turn) * per_north
    b, e = 2 * math.sin(turn) * per_east, -2 * math.cos(turn) * per_north
    transform = (a, b, 8 - 15 * a - 10 * b, d, e, 60 - 15 * d - 10 * e)
    spacing = Spacing(math.hypot(b, e), math.hypot(a, d), "deg")
    wkt = pyproj.CRS(4326).to_wkt()
    raster = MemoryRaster(_noise(20, 30), spacing=spacing, transform=transform, crs=wkt)
    ground = ground_spacing(raster)
    assert ground is not None and ground.unit == "m"
    assert (ground.y, ground.x) == pytest.approx((2, 3), rel=1e-6)
    grid = plan_grid(raster, model_spacing=Spacing(6, 6, "m"))
    assert (grid.step_y, grid.step_x) == pytest.approx((3, 2), rel=1e-6)
    on_grid = grid.ground()
    assert on_grid is not None
    assert (on_grid.y, on_grid.x) == pytest.approx((6, 6), rel=1e-5)
    stated = MemoryRaster(_noise(20, 30), spacing=spacing.scaled(2, 1), transform=transform, crs=wkt)
    ground = ground_spacing(stated)
    assert ground is not None
    assert (ground.y, ground.x) == pytest.approx((4, 3), rel=1e-6)


@pytest.mark.parametrize("latitude", [0.0, 47.0, -63.5])
def test_web_mercator_shrinks_with_latitude(latitude: float) -> None:
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(8, latitude)
    raster = _scene(3857, (2, 0, x, 0, -2, y + 20), "m")
    ground = ground_spacing(raster)
    assert ground is not None
    assert (ground.y, ground.x) == pytest.approx((2 * math.cos(math.radians(latitude)),) * 2, rel=1e-9)
    grid = plan_grid(raster, model_spacing=Spacing(ground.y, ground.x, "m"))
    assert (grid.step_y, grid.step_x) == (1.0, 1.0)


@pytest.mark.parametrize(
    "crs", ["EPSG:3857+5773", "EPSG:3395", "EPSG:3395+5773", "EPSG:5641", "+proj=merc +towgs84=9,9,9"]
)
@pytest.mark.parametrize("latitude", [0.0, 47.0, -63.5])
def test_every_mercator_shrinks_with_latitude(crs: str, latitude: float) -> None:
    """With heights or without, true at the equator or not: as long as the geodesic along the parallel."""
    to_degrees = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    x, y = to_degrees.transform(-40, latitude, direction="INVERSE")
    ground = ground_spacing(_scene(crs, (2, 0, x, 0, -2, y + 20), "m"))
    (west, east), north = to_degrees.transform([x - 1, x + 1], [y, y])[0], latitude
    assert ground is not None
    # Web Mercator is measured as on a sphere, of whose parallels the ellipsoid's are 0.34% longer at most.
    assert ground.x == pytest.approx(pyproj.Geod(ellps="WGS84").inv(west, north, east, north)[2], rel=4e-3)
    assert ground.y == ground.x


def test_utm_is_taken_as_stated() -> None:
    raster = _scene(32632, (0.5, 0, 5e5, 0, -0.5, 5.2e6), "m")
    assert ground_spacing(raster) == Spacing(0.5, 0.5, "m")


def test_model_in_degrees_needs_an_image_in_degrees() -> None:
    model = Spacing(2e-4, 2e-4, "deg")
    raster = _scene(4326, (1e-4, 0, 8, 0, -1e-4, 47), "deg")
    assert plan_grid(raster, model_spacing=model).step_y == pytest.approx(2)
    with pytest.raises(SpacingError, match="reproject"):
        plan_grid(MemoryRaster(_noise(8, 8), um=1), model_spacing=model)


@pytest.mark.parametrize(
    ("model", "level", "resampled"),
    [
        (0.3, 0, True),
        (0.5, 0, False),
        (0.9, 0, True),
        (1.0, 1, False),
        (1.5, 1, True),
        (2.01, 2, False),
        (9.0, 2, True),
    ],
)
def test_the_coarsest_fine_enough_level_is_read(model: float, level: int, resampled: bool) -> None:
    top = _noise(101, 83)
    raster = MemoryRaster(top, top[::2, ::2], top[::4, ::4], um=0.5)
    grid = plan_grid(raster, model_spacing=_um(model))
    assert grid.level == level
    read = GridReader(raster, grid).read(_whole(grid))
    assert read.level == level
    if resampled:
        assert grid.step_y == pytest.approx(model / 0.5)
    else:
        assert np.array_equal(read.pixels, raster.arrays[level])
        assert grid.step_y == 2**level


def test_windows_know_where_they_lie() -> None:
    raster = _scene(32632, (0.5, 0, 500000, 0, -0.5, 5200000), "m")
    grid = plan_grid(raster, model_spacing=Spacing(1.5, 1.0, "m"))
    window = GridReader(raster, grid).read(Box(2, 3, 5, 7))
    assert window.transform == pytest.approx((1.0, 0, 500003, 0, -1.5, 5199997))
    assert window.spacing == Spacing(1.5, 1.0, "m")
    assert window.crs == raster.crs
    assert OutputGrid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


@pytest.mark.parametrize("model", [0.5, 0.8])
def test_empty_box_is_refused(model: float) -> None:
    raster = MemoryRaster(_noise(8, 8), um=0.5)
    with pytest.raises(PlanError, match="empty"):
        GridReader(raster, plan_grid(raster, model_spacing=_um(model))).read(Box(3, 3, 3, 5))
