"""Zarr that xarray and rioxarray wrote: the CRS, transform, nodata and pixels that rioxarray itself reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401 (adds .rio to xarray)
import xarray
from rasterio.crs import CRS
from rasterio.transform import from_origin

from unetpp.errors import ImageFormatError
from unetpp.geometry import Spacing
from unetpp.io import open_raster


def _scene(make: Any, dtype: str = "uint16", names: tuple[str, str] = ("y", "x"), crs: str = "EPSG:32636") -> Any:
    step = 0.5 if crs == "EPSG:32636" else 1e-4
    pixels = np.moveaxis(make.noise((60, 80, 3), dtype), -1, 0)
    array = xarray.DataArray(pixels, dims=("band", *names), name="reflectance")
    array = array.assign_coords(
        {names[1]: 33.0 + (np.arange(80) + 0.5) * step, names[0]: 40.0 - (np.arange(60) + 0.5) * step}
    )
    return array.rio.set_spatial_dims(names[1], names[0]).rio.write_crs(crs).rio.write_transform()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.proves("xarray's Zarr with CRS")
def test_what_rioxarray_writes_is_read_as_rioxarray_reads_it(
    make: Any, tmp_path: Path, zarr_format: Any, dtype: str
) -> None:
    array = _scene(make, dtype).rio.write_nodata(7, encoded=False)
    array.attrs["long_name"] = ("red", "green", "nir")
    array.to_dataset().to_zarr(tmp_path / "scene.zarr", zarr_format=zarr_format)
    truth = xarray.open_zarr(tmp_path / "scene.zarr", decode_coords="all", mask_and_scale=False)["reflectance"]
    for path in (tmp_path / "scene.zarr", tmp_path / "scene.zarr/reflectance"):
        with open_raster(path) as raster:
            assert raster.kind == "scene" and raster.crs is not None
            assert CRS.from_wkt(raster.crs) == truth.rio.crs
            assert raster.transform == pytest.approx(tuple(truth.rio.transform(recalc=True))[:6])
            assert raster.transform == pytest.approx(tuple(from_origin(33, 40, 0.5, 0.5))[:6])
            assert raster.spacing == Spacing(0.5, 0.5, "m")
            assert raster.bands == ("red", "green", "nir")
            window = raster.read(raster.levels[0].box)
            np.testing.assert_array_equal(window.pixels, np.moveaxis(truth.values, 0, -1))
            np.testing.assert_array_equal(window.valid, (truth.values != 7).all(0))
            assert not window.valid.all()


def test_a_crop_lies_where_its_coordinates_say(make: Any, tmp_path: Path) -> None:
    """xarray keeps the whole image's GeoTransform on a crop."""
    crop = _scene(make).isel(y=slice(10, 40), x=slice(20, 50))
    crop.to_dataset().to_zarr(tmp_path / "crop.zarr")
    with open_raster(tmp_path / "crop.zarr") as raster:
        assert raster.transform == pytest.approx((0.5, 0, 33 + 20 * 0.5, 0, -0.5, 40 - 10 * 0.5))


def test_packed_coordinates_are_unpacked(make: Any, tmp_path: Path) -> None:
    packed = {
        "x": {"dtype": "int16", "scale_factor": 0.25, "add_offset": 30.0},
        "y": {"dtype": "int32", "scale_factor": 0.25},
    }
    _scene(make).to_dataset().to_zarr(tmp_path / "packed.zarr", encoding=packed)
    stored = xarray.open_zarr(tmp_path / "packed.zarr", mask_and_scale=False)
    assert stored["x"].dtype == "int16" and stored["x"].values[0] == 13
    with open_raster(tmp_path / "packed.zarr") as raster:
        assert raster.transform == pytest.approx((0.5, 0, 33, 0, -0.5, 40))


@pytest.mark.parametrize(("rows", "columns"), [(1, 30), (20, 1), (1, 1)])
def test_a_crop_to_one_row_or_column_lies_where_its_coordinates_say(
    make: Any, tmp_path: Path, rows: int, columns: int
) -> None:
    crop = _scene(make).isel(y=slice(10, 10 + rows), x=slice(20, 20 + columns))
    crop.to_dataset().to_zarr(tmp_path / "line.zarr")
    with open_raster(tmp_path / "line.zarr") as raster:
        assert raster.transform == pytest.approx((0.5, 0, 33 + 20 * 0.5, 0, -0.5, 40 - 10 * 0.5))


def test_without_coordinates_the_geotransform_counts(make: Any, tmp_path: Path) -> None:
    _scene(make).drop_vars(["x", "y"]).to_dataset().to_zarr(tmp_path / "bare.zarr")
    with open_raster(tmp_path / "bare.zarr") as raster:
        assert raster.transform == pytest.approx((0.5, 0, 33, 0, -0.5, 40))


def test_longitude_and_latitude(make: Any, tmp_path: Path) -> None:
    _scene(make, names=("lat", "lon"), crs="EPSG:4326").to_dataset().to_zarr(tmp_path / "degrees.zarr")
    with open_raster(tmp_path / "degrees.zarr") as raster:
        assert raster.spacing is not None and raster.spacing.unit == "deg"
        assert raster.transform == pytest.approx((1e-4, 0, 33, 0, -1e-4, 40))


def test_uneven_coordinates_and_several_variables_are_refused(make: Any, tmp_path: Path) -> None:
    scene = _scene(make)
    uneven = scene.assign_coords(x=np.arange(80.0) ** 1.5)
    uneven.to_dataset().to_zarr(tmp_path / "uneven.zarr")
    with pytest.raises(ImageFormatError, match="coordinate x is not evenly spaced"):
        open_raster(tmp_path / "uneven.zarr")
    scene.to_dataset().assign(other=scene).to_zarr(tmp_path / "two.zarr")
    with pytest.raises(ImageFormatError, match="holds other, reflectance; give the path of one"):
        open_raster(tmp_path / "two.zarr")


@pytest.mark.parametrize(("unit", "crs_unit"), [("km", "m"), ("rad", "m"), ("m", "km")])
def test_coordinates_in_another_unit_than_the_crs_are_refused(
    make: Any, tmp_path: Path, unit: str, crs_unit: str
) -> None:
    """As satellites' scans in radians and sea ice in kilometres."""
    scene = _scene(make).rio.write_crs(f"+proj=laea +lat_0=90 +ellps=WGS84 +units={crs_unit}")
    for name in ("x", "y"):
        scene[name].attrs["units"] = unit
    scene.to_dataset().to_zarr(tmp_path / "other.zarr")
    with pytest.raises(ImageFormatError, match=rf"its coordinate y is in {unit}, its CRS in \w+; write both"):
        open_raster(tmp_path / "other.zarr")
    for name in ("x", "y"):
        scene[name].attrs["units"] = crs_unit
    scene.to_dataset().to_zarr(tmp_path / "same.zarr")
    with open_raster(tmp_path / "same.zarr") as raster:
        size = 0.5 if crs_unit == "m" else 500
        assert raster.spacing is not None and raster.spacing.x == pytest.approx(size)
